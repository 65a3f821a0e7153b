"""Where pictures come from: a folder, a folder that is watched, or paths on standard input."""

import asyncio
import contextlib
import os
import stat
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from splitserve.errors import PictureError, UsageError
from splitserve.picture import SUFFIXES, list_pictures

POLL_S = 0.2
END = "\0"
PICTURE_LIMIT_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Item:
    """One input.

    Args:
        path: its file, read only when its turn comes.
        given: how it was asked for, None for a file found in a folder.
    """

    path: Path
    given: str | None = None

    @property
    def name(self) -> str:
        """What the answer calls it."""
        return self.given or self.path.name

    def read(self) -> bytes:
        """Read the file.

        Raises:
            PictureError: it cannot be read, or is larger than the limit.
        """
        try:
            facts = self.path.stat()
            if not stat.S_ISREG(facts.st_mode):
                raise PictureError("not a regular file")
            size = facts.st_size
            if size > PICTURE_LIMIT_BYTES:
                raise PictureError(f"{size} bytes are over the limit of {PICTURE_LIMIT_BYTES}")
            return self.path.read_bytes()
        except OSError as error:
            raise PictureError(f"the file cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise PictureError("no file has a name with a zero byte in it") from error


def open_source(source: str, *, watch: bool) -> AsyncIterator[Item]:
    """Choose a source.

    Args:
        source: a folder, one picture, or `-` for paths on standard input.
        watch: keep looking for new pictures in the folder.

    Raises:
        UsageError: no such file or folder, or nothing to watch.
    """
    if source == "-":
        return read_paths()
    path = Path(source)
    if watch and not path.is_dir():
        raise UsageError(f"{path}: --watch follows a folder")
    if watch:
        return watch_folder(path)
    if path.is_dir():
        return read_folder(list_pictures(path))
    if path.is_file():
        return read_folder([path])
    raise UsageError(f"{path}: no such file or folder")


async def read_folder(paths: Sequence[Path]) -> AsyncIterator[Item]:
    """Yield the pictures of a list."""
    for path in paths:
        yield Item(path)


async def watch_folder(folder: Path) -> AsyncIterator[Item]:
    """Yield each picture of a folder as it appears, and again when its file is written anew.

    Polls instead of asking the kernel: a file counts as complete when its size and time stay the
    same over one poll, which also holds on network file systems.
    """
    seen: dict[Path, tuple[int, int]] = {}
    done: dict[Path, tuple[int, int]] = {}
    while True:
        now = await asyncio.to_thread(_states, folder)
        ready = [
            path
            for path, state in now.items()
            if done.get(path) != state and seen.get(path) == state
        ]
        for path in ready:
            done[path] = now[path]
            yield Item(path)
        done = {path: state for path, state in done.items() if path in now}
        seen = now
        await asyncio.sleep(POLL_S)


def _states(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of every picture in a folder that is not empty, by name."""
    states = {}
    for path in sorted(folder.glob("*")):
        with contextlib.suppress(OSError):
            facts = path.stat()
            if path.suffix.lower() in SUFFIXES and facts.st_size and stat.S_ISREG(facts.st_mode):
                states[path] = (facts.st_size, facts.st_mtime_ns)
    return states


async def read_paths() -> AsyncIterator[Item]:
    """Yield the picture named by each line of standard input, until it ends.

    A daemon thread reads, one line ahead, so that a signal can end the agent while it waits.
    """
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str] = asyncio.Queue()
    room = threading.Semaphore()

    def read() -> None:
        # A stream of its own: Python aborts at exit when a daemon thread waits inside sys.stdin.
        # RuntimeError: the loop has ended, and nobody asks any more.
        with (
            open(sys.stdin.fileno(), "rb", closefd=False) as stream,
            contextlib.suppress(RuntimeError),
        ):
            for line in stream:
                loop.call_soon_threadsafe(lines.put_nowait, os.fsdecode(line).strip())
                room.acquire()
            loop.call_soon_threadsafe(lines.put_nowait, END)

    threading.Thread(target=read, daemon=True, name="stdin").start()
    while (line := await lines.get()) != END:
        if line:
            yield Item(Path(line), line)
        room.release()


async def until(source: AsyncIterator[Item], stop: asyncio.Event) -> AsyncIterator[Item]:
    """Pass a source on until it ends or `stop` is set."""
    stopping = asyncio.ensure_future(stop.wait())
    try:
        while not stop.is_set():
            coming = asyncio.ensure_future(anext(source, None))
            await asyncio.wait({coming, stopping}, return_when=asyncio.FIRST_COMPLETED)
            item = coming.result() if coming.done() else None
            if item is None:
                coming.cancel()
                return
            yield item
    finally:
        stopping.cancel()
