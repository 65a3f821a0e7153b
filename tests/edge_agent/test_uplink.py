"""Both transports against a cloud that misbehaves in every way it can."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
from websockets.asyncio.server import Server, ServerConnection, serve

from edge_agent.uplink import HttpUplink, StreamUplink, open_uplink
from splitserve.codec import RawCodec
from splitserve.errors import LinkError, UsageError
from splitserve.wire import (
    CONTENT_TYPE,
    NO_ID,
    Limits,
    Refusal,
    RefusalCode,
    Reply,
    Request,
    decode_frame,
    encode_frame,
)

Handling = Callable[[ServerConnection], Awaitable[None]]
LONG_S = 20.0
SHORT_S = 0.3


def request(number: int) -> bytes:
    return encode_frame(Request(name(number), bytes(16), 1, RawCodec.number, ()))


def reply(number: int) -> bytes:
    return encode_frame(Reply(name(number), bytes(16), 1, RawCodec.number, ()))


def name(number: int) -> bytes:
    return number.to_bytes(16, "big")


def name_of(message: str | bytes) -> bytes:
    assert isinstance(message, bytes)
    return decode_frame(message, Limits()).request_id


async def ask(
    uplink: StreamUplink | HttpUplink, number: int, timeout_s: float = LONG_S
) -> Reply | Refusal:
    return (await uplink.ask(request(number), name(number), timeout_s))[0]


@contextlib.asynccontextmanager
async def fake_cloud(handle: Handling) -> AsyncIterator[tuple[StreamUplink, Server]]:
    """A WebSocket server on loopback that does as `handle` says, and an uplink to it."""
    async with serve(handle, "127.0.0.1", 0, compression=None, close_timeout=0.2) as server:
        port = server.sockets[0].getsockname()[1]
        uplink = StreamUplink(f"http://127.0.0.1:{port}", Limits(frame_bytes=4096))
        try:
            yield uplink, server
        finally:
            await uplink.close()


async def answer_all(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(reply(int.from_bytes(name_of(message), "big")))


async def stay_silent(connection: ServerConnection) -> None:
    async for _ in connection:
        pass


async def test_a_request_gets_its_answer_and_its_size() -> None:
    async with fake_cloud(answer_all) as (uplink, _):
        answer, size, _ = await uplink.ask(request(7), name(7), LONG_S)
        assert isinstance(answer, Reply)
        assert answer.request_id == name(7)
        assert size == len(reply(7))


async def test_answers_are_matched_by_id_in_whatever_order_they_come() -> None:
    async def answer_backwards(connection: ServerConnection) -> None:
        numbers = [int.from_bytes(name_of(await connection.recv()), "big") for _ in range(20)]
        for number in reversed(numbers):
            await connection.send(reply(number))

    async with fake_cloud(answer_backwards) as (uplink, _):
        answers = await asyncio.gather(*(ask(uplink, number) for number in range(1, 21)))
    assert [answer.request_id for answer in answers] == [name(number) for number in range(1, 21)]


async def test_all_requests_share_one_connection() -> None:
    connections = []

    async def count(connection: ServerConnection) -> None:
        connections.append(connection)
        await answer_all(connection)

    async with fake_cloud(count) as (uplink, _):
        await asyncio.gather(*(ask(uplink, number) for number in range(10)))
        await ask(uplink, 11)
    assert len(connections) == 1


async def test_each_connection_has_a_higher_number_and_none_has_none() -> None:
    connections = []

    async def one_each(connection: ServerConnection) -> None:
        connections.append(connection)
        await answer_all(connection)

    async with fake_cloud(one_each) as (uplink, _):
        assert uplink.connection is None
        first = await uplink.ask(request(1), name(1), LONG_S)
        assert (first.connection, uplink.connection) == (1, 1)
        connections[0].transport.abort()
        async with asyncio.timeout(LONG_S):
            while uplink.connection is not None:  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(0.01)
        second = await uplink.ask(request(2), name(2), LONG_S)
        assert (second.connection, uplink.connection) == (2, 2)
    assert uplink.connection is None


async def test_a_refusal_is_an_answer() -> None:
    async def refuse(connection: ServerConnection) -> None:
        async for message in connection:
            refusal = Refusal(RefusalCode.OVERLOADED, "full", name_of(message), 2.5)
            await connection.send(encode_frame(refusal))

    async with fake_cloud(refuse) as (uplink, _):
        answer = await ask(uplink, 1)
    assert answer == Refusal(RefusalCode.OVERLOADED, "full", name(1), 2.5)


async def test_a_refusal_without_an_id_is_an_answer_to_all_that_wait() -> None:
    refusal = Refusal(RefusalCode.MALFORMED, "frame version 1; this side speaks version 2")

    async def refuse_both(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.recv()
        await connection.send(encode_frame(refusal))
        await connection.wait_closed()

    async with fake_cloud(refuse_both) as (uplink, _):
        assert await asyncio.gather(ask(uplink, 1), ask(uplink, 2)) == [refusal, refusal]


async def test_an_answer_nobody_waits_for_is_ignored() -> None:
    async def chatter(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(reply(999))
            await connection.send(request(1))
            await connection.send(reply(1))
            await connection.send(reply(1))
            assert message

    async with fake_cloud(chatter) as (uplink, _):
        for _ in range(3):
            assert isinstance(await ask(uplink, 1), Reply)


async def test_a_server_that_closes_fails_all_that_wait_at_once() -> None:
    async def close_after_three(connection: ServerConnection) -> None:
        for _ in range(3):
            await connection.recv()

    async with fake_cloud(close_after_three) as (uplink, _):
        started = time.perf_counter()
        results = await asyncio.gather(
            *(ask(uplink, number) for number in range(3)), return_exceptions=True
        )
        assert all(isinstance(result, LinkError) for result in results)
        assert time.perf_counter() - started < LONG_S / 4


async def test_a_connection_that_is_torn_fails_all_that_wait_and_the_next_ask_reconnects() -> None:
    connections = []

    async def tear_the_first(connection: ServerConnection) -> None:
        connections.append(connection)
        if len(connections) > 1:
            await answer_all(connection)
            return
        for _ in range(3):
            await connection.recv()
        connection.transport.abort()

    async with fake_cloud(tear_the_first) as (uplink, _):
        results = await asyncio.gather(
            *(ask(uplink, number) for number in range(3)), return_exceptions=True
        )
        assert all(isinstance(result, LinkError) for result in results)
        assert isinstance(await ask(uplink, 4), Reply)


async def test_a_silent_server_costs_the_time_given_and_the_connection() -> None:
    connections: list[ServerConnection] = []

    async def silent_at_first(connection: ServerConnection) -> None:
        connections.append(connection)
        await (stay_silent if len(connections) == 1 else answer_all)(connection)

    async with fake_cloud(silent_at_first) as (uplink, _):
        started = time.perf_counter()
        with pytest.raises(LinkError, match=r"no answer within 0\.300 s"):
            await ask(uplink, 1, SHORT_S)
        assert SHORT_S <= time.perf_counter() - started < SHORT_S + 2
        assert isinstance(await ask(uplink, 2), Reply)
        assert len(connections) == 2
        await asyncio.wait_for(connections[0].wait_closed(), 20)


async def test_one_late_answer_on_a_living_connection_does_not_cost_the_connection() -> None:
    connections = []

    async def ignore_the_first(connection: ServerConnection) -> None:
        connections.append(connection)
        async for message in connection:
            if name_of(message) != name(1):
                await connection.send(reply(int.from_bytes(name_of(message), "big")))

    async with fake_cloud(ignore_the_first) as (uplink, _):
        late = asyncio.create_task(ask(uplink, 1, 3 * SHORT_S))
        await asyncio.sleep(SHORT_S)
        assert isinstance(await ask(uplink, 2), Reply)
        with pytest.raises(LinkError, match="no answer within"):
            await late
        assert isinstance(await ask(uplink, 3), Reply)
    assert len(connections) == 1


async def test_an_answer_after_the_time_is_up_disturbs_nobody() -> None:
    hold = asyncio.Event()

    async def late(connection: ServerConnection) -> None:
        async for message in connection:
            await hold.wait()
            await connection.send(reply(int.from_bytes(name_of(message), "big")))

    async with fake_cloud(late) as (uplink, _):
        with pytest.raises(LinkError):
            await ask(uplink, 1, SHORT_S)
        hold.set()
        assert isinstance(await ask(uplink, 2), Reply)


@pytest.mark.parametrize(
    "garbage",
    [b"noise", b"", "text", reply(1)[:-1], b"\0" * 5000],
    ids=["noise", "empty", "text", "torn", "over the limit"],
)
async def test_garbage_is_a_link_error_and_the_next_ask_reconnects(garbage: str | bytes) -> None:
    connections = []

    async def babble_at_first(connection: ServerConnection) -> None:
        connections.append(connection)
        if len(connections) > 1:
            await answer_all(connection)
            return
        await connection.recv()
        await connection.send(garbage)
        await connection.wait_closed()

    async with fake_cloud(babble_at_first) as (uplink, _):
        started = time.perf_counter()
        with pytest.raises(LinkError):
            await ask(uplink, 1)
        assert time.perf_counter() - started < LONG_S / 4
        assert isinstance(await ask(uplink, 2), Reply)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@pytest.mark.parametrize("transport", ["stream", "http"])
async def test_a_refused_port_is_a_link_error_at_once(transport: str) -> None:
    uplink = open_uplink(transport, f"http://127.0.0.1:{free_port()}")
    started = time.perf_counter()
    for number in range(3):
        with pytest.raises(LinkError):
            await ask(uplink, number)
    assert time.perf_counter() - started < LONG_S / 4
    await uplink.close()


@pytest.mark.parametrize("transport", ["stream", "http"])
async def test_a_server_that_accepts_and_never_speaks_is_a_link_error_in_time(
    transport: str,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        uplink = open_uplink(transport, f"http://127.0.0.1:{mute.getsockname()[1]}")
        started = time.perf_counter()
        with pytest.raises(LinkError, match="no answer within"):
            await ask(uplink, 1, SHORT_S)
        assert time.perf_counter() - started < SHORT_S + 2
        await uplink.close()


@pytest.mark.parametrize("transport", ["stream", "http"])
@pytest.mark.parametrize(
    "greeting", [b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"]
)
async def test_a_server_of_another_kind_is_a_link_error(transport: str, greeting: bytes) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(greeting)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        uplink = open_uplink(transport, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(LinkError):
            await ask(uplink, 1)
        await uplink.close()


async def test_closing_leaves_no_task_behind() -> None:
    async with fake_cloud(answer_all) as (uplink, _):
        before = {task for task in asyncio.all_tasks() if "_read" in repr(task.get_coro())}
        await ask(uplink, 1)
        await uplink.close()
        after = {task for task in asyncio.all_tasks() if "_read" in repr(task.get_coro())}
    assert before == after == set()


async def test_an_uplink_that_never_connected_closes() -> None:
    for transport in ("stream", "http"):
        await open_uplink(transport, "http://127.0.0.1:1").close()


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:8700", "ftp://cloud:1", "http://", "cloud", "", "http://cloud:99999", "http://[::"],
)
def test_what_is_no_address_is_a_usage_error(url: str) -> None:
    for transport in ("stream", "http"):
        with pytest.raises(UsageError, match="--cloud"):
            open_uplink(transport, url)


def test_an_unknown_transport_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="stream, http"):
        open_uplink("pigeon", "http://cloud:1")


def http_uplink(answer: Callable[[httpx.Request], httpx.Response]) -> HttpUplink:
    return HttpUplink("http://cloud", Limits(frame_bytes=4096), httpx.MockTransport(answer))


async def test_http_posts_a_frame_and_reads_one() -> None:
    seen = []

    def answer(posted: httpx.Request) -> httpx.Response:
        seen.append(posted)
        return httpx.Response(200, content=reply(5))

    uplink = http_uplink(answer)
    frame, size, connection = await uplink.ask(request(5), name(5), LONG_S)
    await uplink.close()
    assert isinstance(frame, Reply)
    assert size == len(reply(5))
    assert (connection, uplink.connection) == (None, None)
    assert (seen[0].method, seen[0].url.path) == ("POST", "/v1/infer")
    assert seen[0].headers["content-type"] == CONTENT_TYPE
    assert seen[0].content == request(5)


@pytest.mark.parametrize("refused_id", [name(5), NO_ID])
async def test_a_refusal_over_http_is_an_answer(refused_id: bytes) -> None:
    refusal = Refusal(RefusalCode.OVERLOADED, "full", refused_id, 1.0)
    uplink = http_uplink(lambda posted: httpx.Response(503, content=encode_frame(refusal)))
    assert await ask(uplink, 5) == refusal
    await uplink.close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>bad gateway</html>", "status 502"),
        (b"", "no frame"),
        (reply(6), "another request"),
        (request(5), "with a request"),
        (bytes(5000), "over the limit of 4096"),
    ],
)
async def test_garbage_over_http_is_a_link_error(content: bytes, message: str) -> None:
    uplink = http_uplink(lambda posted: httpx.Response(502, content=content))
    with pytest.raises(LinkError, match=message):
        await ask(uplink, 5)
    await uplink.close()


async def test_an_http_answer_is_read_no_further_than_the_limit() -> None:
    sent = []

    async def endless() -> AsyncIterator[bytes]:
        while True:
            sent.append(1024)
            yield bytes(1024)

    uplink = http_uplink(lambda posted: httpx.Response(200, content=endless()))
    with pytest.raises(LinkError, match="over the limit of 4096"):
        await ask(uplink, 5)
    assert sum(sent) < 100_000
    await uplink.close()


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("refused"), httpx.ReadError("reset"), httpx.ProxyError("no")]
)
async def test_what_httpx_raises_is_a_link_error(error: httpx.HTTPError) -> None:
    def fail(posted: httpx.Request) -> httpx.Response:
        raise error

    uplink = http_uplink(fail)
    with pytest.raises(LinkError, match=type(error).__name__):
        await ask(uplink, 5)
    await uplink.close()
