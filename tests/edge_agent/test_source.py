"""Folders, folders that are watched, paths on standard input, and the end of each."""

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from edge_agent import source
from edge_agent.source import Item, open_source, until
from splitserve.errors import PictureError, UsageError

QUIET_POLLS = 3


async def names(items: AsyncIterator[Item]) -> list[str]:
    return [item.name async for item in items]


async def next_name(items: AsyncIterator[Item]) -> str:
    return (await asyncio.wait_for(anext(items), 20)).name


async def nothing_more(items: AsyncIterator[Item]) -> None:
    """Check that a few polls bring nothing; the source is of no use afterwards."""
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(items), QUIET_POLLS * source.POLL_S)


async def test_a_folder_gives_its_pictures_by_name(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "c.webp", "notes.txt", "d.jpeg", "Thumbs.db", "e.bmp", "jpg"):
        (tmp_path / name).write_bytes(b"x")
    items = open_source(str(tmp_path), watch=False)
    assert await names(items) == ["a.jpg", "b.PNG", "c.webp", "d.jpeg", "e.bmp"]


async def test_one_file_is_a_source_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "snapshot").write_bytes(b"x")
    assert await names(open_source(str(tmp_path / "snapshot"), watch=False)) == ["snapshot"]


def test_a_folder_without_pictures_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"no \.jpg"):
        open_source(str(tmp_path), watch=False)


def test_what_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        open_source(str(tmp_path / "gone"), watch=False)
    for name in ("gone", "file.png"):
        (tmp_path / "file.png").write_bytes(b"x")
        with pytest.raises(UsageError, match="--watch follows a folder"):
            open_source(str(tmp_path / name), watch=True)


def test_an_item_reads_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"content")
    assert Item(tmp_path / "a.png").read() == b"content"


def test_what_cannot_be_read_is_a_picture_error(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.png", tmp_path, Path("x" * 5000), Path("zero\0byte.png")):
        with pytest.raises(PictureError):
            Item(path).read()


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "giant.png").open("wb") as file:
        file.truncate(source.PICTURE_LIMIT_BYTES + 1)
    with pytest.raises(PictureError, match="over the limit"):
        Item(tmp_path / "giant.png").read()


async def test_a_watched_folder_gives_what_is_there_and_what_comes_once_each(
    tmp_path: Path,
) -> None:
    (tmp_path / "b.png").write_bytes(b"x")
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "notes.txt").write_bytes(b"x")
    items = open_source(str(tmp_path), watch=True)
    assert [await next_name(items) for _ in range(2)] == ["a.png", "b.png"]
    (tmp_path / "0.jpg").write_bytes(b"x")
    (tmp_path / "more.txt").write_bytes(b"x")
    assert await next_name(items) == "0.jpg"
    await nothing_more(items)


async def test_a_watched_folder_may_be_empty_at_first(tmp_path: Path) -> None:
    items = open_source(str(tmp_path), watch=True)
    coming = asyncio.ensure_future(next_name(items))
    await asyncio.sleep(2 * source.POLL_S)
    assert not coming.done()
    (tmp_path / "late.png").write_bytes(b"x")
    assert await coming == "late.png"


async def test_a_file_that_still_grows_is_not_given_yet(tmp_path: Path) -> None:
    items = open_source(str(tmp_path), watch=True)
    coming = asyncio.ensure_future(anext(items))
    content = b""
    for part in range(12):
        content += bytes((part,))
        (tmp_path / "slow.png").write_bytes(content)
        await asyncio.sleep(source.POLL_S / 4)
        assert not coming.done()
    assert (await asyncio.wait_for(coming, 20)).read() == content


async def test_an_empty_file_waits_for_its_content(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    items = open_source(str(tmp_path), watch=True)
    coming = asyncio.ensure_future(next_name(items))
    await asyncio.sleep(QUIET_POLLS * source.POLL_S)
    assert not coming.done()
    (tmp_path / "a.png").write_bytes(b"x")
    assert await coming == "a.png"


async def test_a_file_renamed_into_place_is_given(tmp_path: Path) -> None:
    items = open_source(str(tmp_path), watch=True)
    coming = asyncio.ensure_future(next_name(items))
    (tmp_path / "a.png.part").write_bytes(b"x")
    await asyncio.sleep(2 * source.POLL_S)
    assert not coming.done()
    (tmp_path / "a.png.part").rename(tmp_path / "a.png")
    assert await coming == "a.png"


async def test_a_file_that_was_removed_and_comes_back_counts_again(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    items = open_source(str(tmp_path), watch=True)
    assert await next_name(items) == "a.png"
    coming = asyncio.ensure_future(next_name(items))
    path.unlink()
    await asyncio.sleep(QUIET_POLLS * source.POLL_S)
    assert not coming.done()
    path.write_bytes(b"x")
    assert await coming == "a.png"


async def test_a_folder_that_is_removed_and_comes_back_is_followed_on(tmp_path: Path) -> None:
    folder = tmp_path / "usb"
    folder.mkdir()
    items = open_source(str(folder), watch=True)
    coming = asyncio.ensure_future(next_name(items))
    await asyncio.sleep(2 * source.POLL_S)
    folder.rmdir()
    await asyncio.sleep(2 * source.POLL_S)
    assert not coming.done()
    folder.mkdir()
    (folder / "a.png").write_bytes(b"x")
    assert await coming == "a.png"


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Iterator[BinaryIO]:
    """The writing end of what the process under test reads as standard input."""
    reading, writing = os.pipe()
    with open(reading) as stream, open(writing, "wb", buffering=0) as pipe:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdin", stream)
        yield pipe
        pipe.close()
        for thread in threading.enumerate():
            if thread.name == "stdin":
                thread.join(0.5)  # it may sleep for good, but not in a read


async def test_each_line_of_standard_input_is_a_path(stdin: BinaryIO) -> None:
    items = open_source("-", watch=False)
    coming = asyncio.ensure_future(anext(items))
    stdin.write(b"folder/a.png\n")
    assert (await asyncio.wait_for(coming, 20)).path == Path("folder/a.png")
    stdin.write(b"\n   \n b with spaces.png \r\nlast without newline.png")
    stdin.close()
    assert await names(items) == ["b with spaces.png", "last without newline.png"]


async def test_a_path_that_is_no_utf_8_is_a_path_all_the_same(stdin: BinaryIO) -> None:
    stdin.write(b"caf\xe9.png\nnext.png\n")
    stdin.close()
    read = [item.path async for item in open_source("-", watch=False)]
    assert [os.fsencode(path) for path in read] == [b"caf\xe9.png", b"next.png"]


async def test_standard_input_is_not_read_ahead_of_what_is_asked_for(stdin: BinaryIO) -> None:
    stdin.write(b"".join(b"p%d.png\n" % number for number in range(100)))
    stdin.close()
    items = open_source("-", watch=False)
    assert await next_name(items) == "p0.png"
    await asyncio.sleep(0.05)
    assert await names(items) == [f"p{number}.png" for number in range(1, 100)]


def test_leaving_in_the_middle_of_standard_input_makes_no_noise(
    stdin: BinaryIO, capfd: pytest.CaptureFixture[str]
) -> None:
    stdin.write(b"a.png\nb.png\nc.png\nd.png\n")

    async def one() -> str:
        return await next_name(open_source("-", watch=False))

    assert asyncio.run(one()) == "a.png"
    stdin.write(b"e.png\n")
    stdin.close()
    assert capfd.readouterr().err == ""


async def test_until_passes_a_source_on_to_its_end(album: Path) -> None:
    items = until(open_source(str(album), watch=False), asyncio.Event())
    assert await names(items) == [f"p{number}.png" for number in range(6)]


async def test_until_stops_a_source_that_is_always_ready(album: Path) -> None:
    stop = asyncio.Event()
    got = []
    async for item in until(open_source(str(album), watch=False), stop):
        got.append(item.name)
        if len(got) == 2:
            stop.set()
    assert got == ["p0.png", "p1.png"]


async def test_until_stops_at_once_while_a_source_waits(tmp_path: Path) -> None:
    stop = asyncio.Event()
    rest = asyncio.ensure_future(names(until(open_source(str(tmp_path), watch=True), stop)))
    await asyncio.sleep(0.05)
    before = asyncio.get_running_loop().time()
    stop.set()
    assert await asyncio.wait_for(rest, 20) == []
    assert asyncio.get_running_loop().time() - before < source.POLL_S


async def test_until_gives_nothing_when_it_was_stopped_before(album: Path) -> None:
    stop = asyncio.Event()
    stop.set()
    assert await names(until(open_source(str(album), watch=False), stop)) == []


async def test_until_passes_a_sources_error_on() -> None:
    async def failing() -> AsyncIterator[Item]:
        yield Item(Path("a.png"))
        raise ZeroDivisionError

    items = until(failing(), asyncio.Event())
    assert await next_name(items) == "a.png"
    with pytest.raises(ZeroDivisionError):
        await anext(items)


async def test_until_leaves_no_task_behind(tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    stop = asyncio.Event()
    rest = asyncio.ensure_future(names(until(open_source(str(tmp_path), watch=True), stop)))
    await asyncio.sleep(0.01)
    stop.set()
    await rest
    async with asyncio.timeout(20):
        while not asyncio.all_tasks() <= before:  # noqa: ASYNC110  # they are not ours to await
            await asyncio.sleep(0.01)


async def test_a_watched_file_that_is_written_anew_is_given_again(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"one")
    items = open_source(str(tmp_path), watch=True)
    assert (await anext(items)).read() == b"one"
    (tmp_path / "a.png").write_bytes(b"another")
    assert (await asyncio.wait_for(anext(items), 5)).read() == b"another"
    await items.aclose()


def test_a_pipe_is_no_picture(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(PictureError, match="not a regular file"):
        Item(tmp_path / "a.png").read()
