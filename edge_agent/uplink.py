"""The one door to the network: frames over one WebSocket, or one HTTP request each."""

import asyncio
import contextlib
import logging
import time
from typing import NamedTuple, Protocol

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidURI

from splitserve.errors import LinkError, UsageError, WireError
from splitserve.wire import CONTENT_TYPE, NO_ID, Limits, Refusal, Reply, decode_frame

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 0.5
KEEP_ALIVE_S = 60  # under the service's own 75 s, so that it never closes first


class Heard(NamedTuple):
    """An answer.

    Args:
        frame: what it says.
        size_bytes: its size.
        connection: number of the connection that carried it; None where connections know nothing.
    """

    frame: Reply | Refusal
    size_bytes: int
    connection: int | None = None


Waiting = asyncio.Future[Heard]


class Uplink(Protocol):
    """Carries one frame there and its answer back."""

    @property
    def connection(self) -> int | None:
        """Number of the connection in use, rising; None where none is open or none remembers."""
        ...

    async def ask(self, frame: bytes, request_id: bytes, timeout_s: float) -> Heard:
        """Send a request, wait for its answer.

        Raises:
            LinkError: no answer within `timeout_s`, or the connection failed.
        """
        ...

    async def close(self) -> None:
        """Give the connection back."""
        ...


class StreamUplink:
    """All requests over one WebSocket, answers in any order; reconnects when asked to send.

    Args:
        url: the service, http(s)://host:port.
        limits: what an answer may claim.
    """

    def __init__(self, url: str, limits: Limits) -> None:
        parsed = httpx.URL(url)
        self._url = parsed.copy_with(
            scheme="wss" if parsed.scheme == "https" else "ws",
            path=parsed.path.rstrip("/") + "/v1/stream",
        )
        self._limits = limits
        self._connection: ClientConnection | None = None
        self._opened = 0
        self._reader: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()
        self._waiting: dict[bytes, Waiting] = {}
        self._heard_at = 0.0

    @property
    def connection(self) -> int | None:
        """Number of the WebSocket, None while there is none."""
        return None if self._connection is None else self._opened

    async def ask(self, frame: bytes, request_id: bytes, timeout_s: float) -> Heard:
        """Send a frame, wait for the answer with its request id."""
        started = time.monotonic()
        answer: Waiting = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = answer
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._open()
                await connection.send(frame)
                return await answer
        except TimeoutError as error:
            if self._heard_at < started:  # not a byte since: the connection may be a black hole
                self._drop(LinkError("the connection went silent"))
            raise LinkError(f"no answer within {timeout_s:.3f} s") from error
        except LinkError:
            raise
        except Exception as error:  # names that do not resolve raise UnicodeError, and so on
            raise LinkError(f"{type(error).__name__}: {error}") from error
        finally:
            self._waiting.pop(request_id, None)
            if answer.done() and not answer.cancelled():
                answer.exception()  # marks it as seen where nobody awaits it any more

    async def _open(self) -> ClientConnection:
        async with self._opening:
            if self._connection is None:
                self._connection = await connect(
                    str(self._url),
                    max_size=self._limits.frame_bytes,
                    compression=None,
                    open_timeout=None,
                    close_timeout=CLOSE_TIMEOUT_S,
                    proxy=None,  # the environment is read by command.py alone
                )
                self._opened += 1
                self._reader = asyncio.create_task(self._read(self._connection, self._opened))
            return self._connection

    async def _read(self, connection: ClientConnection, number: int) -> None:
        failure = LinkError("the service closed the connection")
        try:
            async for message in connection:
                self._heard_at = time.monotonic()
                data = message if isinstance(message, bytes) else message.encode()
                frame = decode_frame(data, self._limits)
                if isinstance(frame, Reply | Refusal):
                    self._hand_out(Heard(frame, len(data), number))
        except WireError as error:
            failure = LinkError(f"the service sent no frame: {error}")
        except Exception as error:  # noqa: BLE001  # whatever it is, what waits must hear of it
            failure = LinkError(f"{type(error).__name__}: {error}")
        if connection is self._connection:
            self._drop(failure)

    def _hand_out(self, heard: Heard) -> None:
        """Give an answer to the one that waits for it; a refusal without an id concerns them all.

        Such a refusal means that the service could not read a frame (another version, say); whose
        frame it was is unknown, and nobody shall wait in vain.
        """
        frame = heard.frame
        to_all = isinstance(frame, Refusal) and frame.request_id == NO_ID
        mine = self._waiting.get(frame.request_id)
        for waiting in self._waiting.values() if to_all else [mine]:
            if waiting is not None and not waiting.done():
                waiting.set_result(heard)

    def _drop(self, failure: LinkError) -> None:
        """Forget the connection and fail what waits on it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.transport.abort()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(failure)

    async def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader


class HttpUplink:
    """One HTTP request per frame over kept-alive connections.

    Args:
        url: the service, http(s)://host:port.
        limits: what an answer may claim.
        transport: stands in for the network in tests.
    """

    def __init__(
        self, url: str, limits: Limits, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._limits = limits
        self._client = httpx.AsyncClient(
            base_url=url,
            transport=transport,
            trust_env=False,  # the environment is read by command.py alone
            limits=httpx.Limits(keepalive_expiry=KEEP_ALIVE_S),
            headers={"content-type": CONTENT_TYPE},
        )

    @property
    def connection(self) -> None:
        """Requests over HTTP know nothing of each other."""
        return

    async def ask(self, frame: bytes, request_id: bytes, timeout_s: float) -> Heard:
        """Post a frame, read the answer."""
        try:
            async with asyncio.timeout(timeout_s):
                status, content = await self._post(frame)
        except TimeoutError as error:
            raise LinkError(f"no answer within {timeout_s:.3f} s") from error
        except LinkError:
            raise
        except Exception as error:  # names that do not resolve raise UnicodeError, and so on
            raise LinkError(f"{type(error).__name__}: {error}") from error
        try:
            answer = decode_frame(content, self._limits)
        except WireError as error:
            raise LinkError(f"status {status}, and the body is no frame: {error}") from error
        if not isinstance(answer, Reply | Refusal):
            raise LinkError("the service answered with a request")
        if answer.request_id not in (request_id, NO_ID):
            raise LinkError("the service answered another request")
        return Heard(answer, len(content))

    async def _post(self, frame: bytes) -> tuple[int, bytes]:
        """Return status and body, which is read no further than a frame may be long."""
        content, limit = bytearray(), self._limits.frame_bytes
        request = self._client.stream("POST", "/v1/infer", content=frame, timeout=None)
        async with request as response:
            async for part in response.aiter_bytes():
                content += part
                if len(content) > limit:
                    raise LinkError(f"the answer is over the limit of {limit} bytes")
            return response.status_code, bytes(content)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


UPLINKS: dict[str, type[StreamUplink | HttpUplink]] = {"stream": StreamUplink, "http": HttpUplink}


def open_uplink(transport: str, url: str) -> Uplink:
    """Choose an uplink by name.

    Raises:
        UsageError: an unknown transport, or a URL that is no http(s)://host[:port].
    """
    if transport not in UPLINKS:
        raise UsageError(f"no transport {transport!r}; there are: {', '.join(UPLINKS)}")
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, InvalidURI) as error:
        raise UsageError(f"--cloud {url!r} is no URL: {error}") from error
    is_port = parsed.port is None or 0 < parsed.port < 65536
    if parsed.scheme not in ("http", "https") or not parsed.host or not is_port:
        raise UsageError(f"--cloud {url!r} is no http(s)://host:port")
    return UPLINKS[transport](url, Limits())
