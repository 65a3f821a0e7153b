"""HTTP only: routes, statuses, limits. The work is done by `Service`."""

import asyncio
import contextlib
import logging

from fastapi import FastAPI, Request, Response, WebSocket
from starlette.requests import ClientDisconnect
from starlette.websockets import WebSocketDisconnect

from cloud_service.service import Service
from splitserve import __version__
from splitserve.codec import References
from splitserve.wire import CONTENT_TYPE, Refusal, RefusalCode, Reply, encode_frame

logger = logging.getLogger(__name__)

STATUS = {
    RefusalCode.MALFORMED: 400,
    RefusalCode.TOO_LARGE: 413,
    RefusalCode.UNKNOWN_ARTIFACT: 404,
    RefusalCode.CONTRACT: 409,
    RefusalCode.CODEC: 422,
    RefusalCode.OVERLOADED: 503,
    RefusalCode.DRAINING: 503,
    RefusalCode.EXPIRED: 504,
    RefusalCode.INTERNAL: 500,
    RefusalCode.REFERENCE: 409,
}
GOING_AWAY = 1001
UNSUPPORTED = 1003


def build_app(service: Service, in_flight: int = 64) -> FastAPI:
    """Wrap a service in HTTP routes.

    Args:
        service: answers frames.
        in_flight: requests that one stream may have unanswered; further ones are not read.
    """
    app = FastAPI(title="splitserve", version=__version__, openapi_url=None)

    @app.post("/v1/infer")
    async def infer(request: Request) -> Response:
        """Answer one frame in the body with one frame."""
        claimed = _claimed_bytes(request)
        if claimed > service.limits.frame_bytes:
            return _respond(service.refuse_too_large(claimed))
        try:
            body = await _read(request, service.limits.frame_bytes)
        except ClientDisconnect:
            return Response(status_code=400)
        if body is None:
            return _respond(service.refuse_too_large(service.limits.frame_bytes + 1))
        return _respond(await service.answer(body))

    @app.websocket("/v1/stream")
    async def stream(socket: WebSocket) -> None:
        """Answer many frames on one connection, each as soon as it is done."""
        await socket.accept()
        task = asyncio.create_task(_Stream(socket, service, in_flight).run())
        service.streams.add(task)
        task.add_done_callback(service.streams.discard)
        await task

    _add_probes(app, service)
    return app


def _add_probes(app: FastAPI, service: Service) -> None:
    """Add the routes that tell of the service."""

    @app.get("/v1/artifact")
    async def artifact() -> Response:
        """Return manifest.json of the artifact that is served, byte for byte."""
        root = service.tail.artifact
        headers = {"x-splitserve-artifact-id": root.id.hex()}
        return Response(root.manifest_bytes, 200, headers, "application/json")

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        """Answer while the event loop turns."""
        return {"status": "live"}

    @app.get("/health/ready")
    async def ready(response: Response) -> dict[str, str]:
        """Answer 200 while new requests are taken, 503 once the service drains."""
        response.status_code = 200 if service.is_ready else 503
        return {"status": "ready" if service.is_ready else "draining"}

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _claimed_bytes(request: Request) -> int:
    """Return what the header promises, 0 where it is no number: the body is counted anyway."""
    try:
        return int(request.headers.get("content-length") or 0)
    except ValueError:
        return 0


async def _read(request: Request, limit: int) -> bytes | None:
    """Read a body of at most `limit` bytes; None when it is longer."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            return None
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _respond(frame: Reply | Refusal) -> Response:
    if isinstance(frame, Reply):
        return Response(encode_frame(frame), media_type=CONTENT_TYPE)
    headers = {}
    if frame.retry_after_s:
        headers["retry-after"] = str(max(1, round(frame.retry_after_s)))
    return Response(encode_frame(frame), STATUS[frame.code], headers, CONTENT_TYPE)


class _Stream:
    """One WebSocket: reads frames until the peer or the service goes, answers all it has read."""

    def __init__(self, socket: WebSocket, service: Service, in_flight: int) -> None:
        self._socket = socket
        self._service = service
        self._room = asyncio.Semaphore(in_flight)
        self._tasks: set[asyncio.Task[None]] = set()
        self._references = References()

    async def run(self) -> None:
        draining = asyncio.create_task(self._service.scheduler.draining.wait())
        code = GOING_AWAY
        try:
            while (message := await self._next(draining)) is not None:
                data = message.get("bytes")
                if data is None:
                    code = UNSUPPORTED
                    break
                await self._room.acquire()
                task = asyncio.create_task(self._answer(data))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            await asyncio.gather(*self._tasks)
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                await self._socket.close(code)
        except WebSocketDisconnect:
            for task in self._tasks:
                task.cancel()
        finally:
            draining.cancel()

    async def _next(self, draining: asyncio.Task[bool]) -> dict[str, bytes] | None:
        """Wait for a message; None when the service drains."""
        receiving = asyncio.create_task(self._socket.receive())
        await asyncio.wait({receiving, draining}, return_when=asyncio.FIRST_COMPLETED)
        if not receiving.done():
            receiving.cancel()
            return None
        message = receiving.result()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        return dict(message)

    async def _answer(self, data: bytes) -> None:
        try:
            frame = await self._service.answer(data, self._references)
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                await self._socket.send_bytes(encode_frame(frame))
        finally:
            self._room.release()
