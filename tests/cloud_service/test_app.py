"""HTTP in one process without sockets; the stream over a real server on loopback."""

import asyncio
import contextlib
import dataclasses
import socket
import threading
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
import uvicorn
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from cloud_service.app import STATUS, build_app
from cloud_service.scheduler import Scheduler
from cloud_service.service import Service
from splitserve.wire import (
    CONTENT_TYPE,
    Frame,
    Limits,
    Refusal,
    RefusalCode,
    Reply,
    Request,
    decode_frame,
    encode_frame,
)

MakeRequest = Callable[..., Request]


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=build_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://cloud") as made:
        yield made


def refusal(response: httpx.Response) -> Refusal:
    frame = decode_frame(response.content, Limits())
    assert isinstance(frame, Refusal)
    assert response.headers["content-type"] == CONTENT_TYPE
    assert response.status_code == STATUS[frame.code]
    return frame


async def test_a_frame_is_answered_with_a_frame(
    client: httpx.AsyncClient, make_request: MakeRequest
) -> None:
    response = await client.post("/v1/infer", content=encode_frame(make_request(1, 5)))
    assert response.status_code == 200
    assert response.headers["content-type"] == CONTENT_TYPE
    frame = decode_frame(response.content, Limits())
    assert isinstance(frame, Reply)
    assert frame.request_id == (5).to_bytes(16, "big")


async def test_what_does_not_fit_has_its_status(
    client: httpx.AsyncClient, make_request: MakeRequest
) -> None:
    request = make_request(1)
    cases = [
        (dataclasses.replace(request, artifact_id=b"\x01" * 16), 404),
        (dataclasses.replace(request, cut=77), 409),
        (dataclasses.replace(request, codec=250), 422),
        (Refusal(RefusalCode.CODEC, "not a request"), 400),
    ]
    for frame, status in cases:
        response = await client.post("/v1/infer", content=encode_frame(frame))
        assert response.status_code == status
        assert "retry-after" not in response.headers
        refusal(response)


def test_every_refusal_code_has_a_status() -> None:
    assert set(STATUS) == set(RefusalCode)
    assert all(400 <= status < 600 for status in STATUS.values())


@pytest.mark.parametrize("body", [b"", b"{}", b"\0" * 64])
async def test_a_body_that_is_no_frame_is_a_bad_request(
    client: httpx.AsyncClient, body: bytes
) -> None:
    response = await client.post("/v1/infer", content=body)
    assert response.status_code == 400
    assert refusal(response).code is RefusalCode.MALFORMED


async def test_overload_says_when_to_come_back(
    service: Service, client: httpx.AsyncClient, make_request: MakeRequest
) -> None:
    service.tail.gate.clear()
    frame = encode_frame(make_request(1))
    held = [asyncio.create_task(service.answer(frame)) for _ in range(4)]
    await asyncio.sleep(0)
    response = await client.post("/v1/infer", content=frame)
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert refusal(response).code is RefusalCode.OVERLOADED
    service.tail.gate.set()
    await asyncio.gather(*held)


async def test_a_draining_service_refuses_and_says_so(
    service: Service, client: httpx.AsyncClient, make_request: MakeRequest
) -> None:
    await service.drain()
    response = await client.post("/v1/infer", content=encode_frame(make_request(1)))
    assert refusal(response).code is RefusalCode.DRAINING
    assert int(response.headers["retry-after"]) >= 1


async def test_a_surprise_is_a_frame_too(
    service: Service, client: httpx.AsyncClient, make_request: MakeRequest
) -> None:
    service.tail.failure = ZeroDivisionError("the vault is at 12 Elm Street")
    response = await client.post("/v1/infer", content=encode_frame(make_request(1)))
    assert response.status_code == 500
    assert refusal(response).message == "internal error"
    assert b"vault" not in response.content


async def endless(read: list[int], part: bytes = b"x" * 65536) -> AsyncIterator[bytes]:
    while True:
        read.append(len(part))
        yield part


async def test_a_body_that_announces_too_much_is_refused_unread(
    service: Service, client: httpx.AsyncClient
) -> None:
    read: list[int] = []
    headers = {"content-length": str(service.limits.frame_bytes + 1)}
    response = await client.post("/v1/infer", content=endless(read), headers=headers)
    assert response.status_code == 413
    assert refusal(response).code is RefusalCode.TOO_LARGE
    assert read == []


async def test_a_chunked_body_is_read_no_further_than_the_limit(
    service: Service, client: httpx.AsyncClient
) -> None:
    read: list[int] = []
    response = await client.post("/v1/infer", content=endless(read))
    assert response.status_code == 413
    assert refusal(response).code is RefusalCode.TOO_LARGE
    assert sum(read) <= service.limits.frame_bytes + 2 * 65536


@pytest.mark.parametrize(
    "length", ["-5", "many", "", "1e3", "\u00b2", "9" * 5000, "-" + "9" * 5000]
)
async def test_a_content_length_that_makes_no_sense_is_no_server_error(
    client: httpx.AsyncClient, length: str
) -> None:
    headers = {"content-length": length.encode("latin-1")}
    response = await client.post("/v1/infer", content=b"noise", headers=headers)
    assert response.status_code in (400, 413)
    refusal(response)


async def test_a_small_lie_in_content_length_changes_nothing(
    service: Service, client: httpx.AsyncClient
) -> None:
    response = await client.post("/v1/infer", content=endless([]), headers={"content-length": "10"})
    assert response.status_code == 413


async def test_probes_tell_alive_from_ready(service: Service, client: httpx.AsyncClient) -> None:
    assert (await client.get("/health/live")).status_code == 200
    ready = await client.get("/health/ready")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
    service.is_ready = False
    draining = await client.get("/health/ready")
    assert (draining.status_code, draining.json()) == (503, {"status": "draining"})
    assert (await client.get("/health/live")).status_code == 200


async def test_metrics_are_prometheus_text(
    client: httpx.AsyncClient, make_request: MakeRequest
) -> None:
    await client.post("/v1/infer", content=encode_frame(make_request(1)))
    await client.post("/v1/infer", content=b"noise")
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'splitserve_refusals_total{reason="malformed"} 1.0' in response.text
    assert "splitserve_requests_total{cut=" in response.text


async def test_the_manifest_is_served_with_its_id(
    service: Service, client: httpx.AsyncClient
) -> None:
    response = await client.get("/v1/artifact")
    artifact = service.tail.artifact
    assert response.headers["x-splitserve-artifact-id"] == artifact.id.hex()
    assert type(artifact.manifest).model_validate_json(response.text) == artifact.manifest


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/infer", 405), ("GET", "/docs", 404), ("GET", "/v1/stream", 404)],
)
async def test_other_routes_are_not_there(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    assert (await client.request(method, path)).status_code == status


async def eventually(claim: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not claim():  # noqa: ASYNC110  # nothing here tells when it comes true
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def served(service: Service, in_flight: int = 64) -> AsyncIterator[str]:
    """Run a real server on a free port of loopback; yields the stream's URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        build_app(service, in_flight),
        log_config=None,
        http="httptools",
        ws="websockets-sansio",
        lifespan="off",
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await eventually(lambda: server.started)
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}/v1/stream"
    finally:
        server.should_exit = True
        await asyncio.wait_for(running, 20)


@contextlib.asynccontextmanager
async def streaming(service: Service, in_flight: int = 64) -> AsyncIterator[ClientConnection]:
    async with (
        served(service, in_flight) as url,
        connect(url, compression=None, proxy=None) as connection,
    ):
        yield connection


async def next_frame(connection: ClientConnection) -> Frame:
    message = await asyncio.wait_for(connection.recv(), 20)
    assert isinstance(message, bytes)
    return decode_frame(message, Limits())


async def test_a_stream_answers_each_request_as_soon_as_it_is_done(
    service: Service, make_request: MakeRequest
) -> None:
    slow = make_request(1, number=1)
    service.tail.gates[slow.request_id] = threading.Event()
    async with streaming(service) as connection:
        await connection.send(encode_frame(slow))
        await connection.send(encode_frame(make_request(2, number=2)))
        first = await next_frame(connection)
        service.tail.gates[slow.request_id].set()
        second = await next_frame(connection)
    assert isinstance(first, Reply)
    assert isinstance(second, Reply)
    assert (first.request_id[-1], first.cut) == (2, 2)
    assert (second.request_id[-1], second.cut) == (1, 1)


async def test_many_requests_in_flight_each_get_their_own_answer(
    service: Service, make_request: MakeRequest
) -> None:
    requests = [make_request(number % 3, number=number) for number in range(40)]
    scheduler = Scheduler(workers=2, waiting=100)
    wide = Service(service.tail, scheduler, service.limits)
    async with streaming(wide, in_flight=8) as connection:
        for request in requests:
            await connection.send(encode_frame(request))
        frames = [await next_frame(connection) for _ in requests]
    scheduler.close()
    assert all(isinstance(frame, Reply) for frame in frames)
    cuts = {frame.request_id: frame.cut for frame in frames}
    assert cuts == {request.request_id: request.cut for request in requests}


async def test_a_stream_is_read_no_further_than_it_may_have_in_flight(
    service: Service, make_request: MakeRequest
) -> None:
    service.tail.gate.clear()
    async with streaming(service, in_flight=2) as connection:
        for number in range(4):
            await connection.send(encode_frame(make_request(1, number)))
        await eventually(lambda: service.scheduler.pending == 2)
        await asyncio.sleep(0.05)
        assert service.scheduler.pending == 2
        service.tail.gate.set()
        frames = [await next_frame(connection) for _ in range(4)]
    assert all(isinstance(frame, Reply) for frame in frames)


async def test_text_on_a_stream_ends_it_as_unsupported(
    service: Service, make_request: MakeRequest
) -> None:
    async with streaming(service) as connection:
        await connection.send(encode_frame(make_request(1, number=3)))
        await connection.send("hello")
        assert isinstance(await next_frame(connection), Reply)
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(connection.recv(), 20)
        assert connection.close_code == 1003


async def test_a_malformed_frame_is_refused_and_the_stream_lives_on(
    service: Service, make_request: MakeRequest
) -> None:
    async with streaming(service) as connection:
        for noise in (b"", b"noise", encode_frame(make_request(1))[:-1]):
            await connection.send(noise)
            frame = await next_frame(connection)
            assert isinstance(frame, Refusal)
            assert frame.code is RefusalCode.MALFORMED
        await connection.send(encode_frame(make_request(1)))
        assert isinstance(await next_frame(connection), Reply)


async def test_a_client_that_disappears_leaves_nothing_behind(
    service: Service, make_request: MakeRequest
) -> None:
    service.tail.gate.clear()
    async with served(service) as url:
        before = asyncio.all_tasks()
        connection = await connect(url, compression=None, proxy=None)
        for number in range(3):
            await connection.send(encode_frame(make_request(1, number)))
        await eventually(lambda: service.scheduler.pending == 3)
        connection.transport.abort()
        await eventually(lambda: not service.streams)
        await eventually(lambda: asyncio.all_tasks() <= before)
        # What waited is forgotten; what runs holds its place until its thread is done.
        await eventually(lambda: service.scheduler.pending == 2)
        service.tail.gate.set()
        await eventually(lambda: service.scheduler.pending == 0)
        async with connect(url, compression=None, proxy=None) as another:
            await another.send(encode_frame(make_request(1, 9)))
            assert isinstance(await next_frame(another), Reply)


async def test_a_drain_answers_what_the_stream_has_read_then_says_goodbye(
    service: Service, make_request: MakeRequest
) -> None:
    service.tail.gate.clear()
    async with streaming(service) as connection:
        for number in range(3):
            await connection.send(encode_frame(make_request(1, number)))
        await eventually(lambda: service.scheduler.pending == 3)
        draining = asyncio.create_task(service.drain())
        await asyncio.sleep(0.02)
        assert not draining.done()
        service.tail.gate.set()
        frames = [await next_frame(connection) for _ in range(3)]
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(connection.recv(), 20)
        assert connection.close_code == 1001
        await asyncio.wait_for(draining, 20)
    assert {frame.request_id[-1] for frame in frames} == {0, 1, 2}
    assert all(isinstance(frame, Reply) for frame in frames)
