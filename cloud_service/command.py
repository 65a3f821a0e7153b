"""`splitserve serve`: load, warm up, answer, drain."""

import asyncio
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn
import uvloop
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from cloud_service.app import build_app
from cloud_service.scheduler import Scheduler
from cloud_service.service import Service
from cloud_service.tail import MAX_ELEMENTS, Tail
from splitserve.artifact import load_artifact
from splitserve.codec import use_one_thread
from splitserve.errors import UsageError
from splitserve.logs import configure_logging
from splitserve.output import print_document
from splitserve.runtime import RuntimeOptions, open_chain
from splitserve.settings import Settings
from splitserve.wire import Limits

logger = logging.getLogger(__name__)

KEEP_ALIVE_S = 75


class Options(Settings):
    """Run the cloud service: decode features, run the tail, answer.

    Prints one JSON line with its address once it is ready. SIGTERM drains: readiness turns 503,
    accepted requests are finished, then the process ends with status 0.
    """

    model_config = SettingsConfigDict(
        cli_prog_name="splitserve serve", env_prefix="SPLITSERVE_SERVE_"
    )

    artifact: Path
    """Artifact folder."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8700, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    threads: int = Field(default=0, ge=0, le=1024)
    """Threads of one run; 0 means the cores this process may use."""
    workers: int = Field(default=1, ge=1, le=256)
    """Requests that run at once."""
    waiting: int = Field(default=256, ge=0)
    """Requests that may wait; one more is refused."""
    max_frame_bytes: int = Field(default=16 * 1024 * 1024, ge=1024, le=2**31)
    """Largest request frame."""
    max_elements: int = Field(default=MAX_ELEMENTS, ge=1024, le=2**31)
    """Most elements of one tensor; bounds what a small frame can make the service allocate."""
    drain_delay_s: float = Field(default=0.0, ge=0, le=600)
    """Seconds between readiness turning 503 and the end of accepting, for a balancer to notice."""
    drain_limit_s: float = Field(default=30.0, gt=0, le=600)
    """Seconds after which draining gives up."""
    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    """Lowest level logged."""
    log_json: bool = True
    """One JSON object a log line, or plain text."""


class DrainingServer(uvicorn.Server):
    """uvicorn closes streams at once on SIGTERM; this one finishes what it accepted first.

    Args:
        config: uvicorn's own.
        service: what is drained.
        options: how long draining may take.
        announce: called once requests are taken and signals drain instead of killing.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        options: Options,
        announce: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._announce = announce
        self._service = service
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then tell."""
        await super().startup(sockets)
        self._announce()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on the first signal, stop at once on the second."""
        if self._service.is_ready:
            self._service.is_ready = False
            self._loop.call_soon_threadsafe(self._begin)
        else:
            super().handle_exit(sig, frame)

    def _begin(self) -> None:
        self._draining = self._loop.create_task(self._drain())

    async def _drain(self) -> None:
        pending = {"pending": self._service.scheduler.pending}
        logger.info("draining", extra=pending)
        await asyncio.sleep(self._options.drain_delay_s)
        try:
            async with asyncio.timeout(self._options.drain_limit_s):
                await self._service.drain()
        except TimeoutError:
            logger.warning("drain limit reached", extra=pending)
        self.should_exit = True


def run(options: Options) -> int:
    """Serve until SIGTERM or SIGINT."""
    configure_logging(options.log_level, as_json=options.log_json)
    use_one_thread()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(options))


async def _serve(options: Options) -> int:
    artifact = load_artifact(options.artifact)
    chain = await asyncio.to_thread(open_chain, artifact, RuntimeOptions(threads=options.threads))
    tail = Tail(artifact, chain, max_elements=options.max_elements)
    await asyncio.to_thread(tail.warm_up)
    scheduler = Scheduler(options.workers, options.waiting)
    service = Service(tail, scheduler, _limits(options))
    config = uvicorn.Config(
        build_app(service),
        log_config=None,
        access_log=False,
        http="httptools",
        ws="websockets-sansio",
        ws_max_size=options.max_frame_bytes,
        ws_per_message_deflate=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=round(options.drain_limit_s) or 1,
        server_header=False,
    )
    listener = _listen(options.host, options.port)
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    name = artifact.manifest.model.name

    def announce() -> None:
        print_document({"url": url, "artifact_id": artifact.id.hex(), "model": name})
        logger.info("ready", extra={"url": url, "providers": list(chain.providers)})

    server = DrainingServer(config, service, options, announce)
    await server.serve(sockets=[listener])
    scheduler.close()
    return 0


def _limits(options: Options) -> Limits:
    return Limits(frame_bytes=options.max_frame_bytes, elements=options.max_elements)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, accepted sockets get TCP_NODELAY; without it a reply can wait 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    listener.listen(1024)
    return listener
