"""One frame in, one frame out: the core under every transport."""

import asyncio
import functools
import logging
import time

from cloud_service.metrics import Metrics
from cloud_service.scheduler import Scheduler
from cloud_service.tail import Tail
from splitserve.codec import References
from splitserve.errors import (
    CodecError,
    ContractError,
    DrainingError,
    ExpiredError,
    FrameTooLargeError,
    OverloadedError,
    ReferenceMissingError,
    SplitServeError,
    UnknownArtifactError,
    WireError,
)
from splitserve.wire import (
    Limits,
    Refusal,
    RefusalCode,
    Reply,
    Request,
    decode_frame,
)

logger = logging.getLogger(__name__)

CODES: dict[type[SplitServeError], RefusalCode] = {
    FrameTooLargeError: RefusalCode.TOO_LARGE,
    WireError: RefusalCode.MALFORMED,
    UnknownArtifactError: RefusalCode.UNKNOWN_ARTIFACT,
    ContractError: RefusalCode.CONTRACT,
    CodecError: RefusalCode.CODEC,
    ReferenceMissingError: RefusalCode.REFERENCE,
    DrainingError: RefusalCode.DRAINING,
    OverloadedError: RefusalCode.OVERLOADED,
    ExpiredError: RefusalCode.EXPIRED,
    SplitServeError: RefusalCode.INTERNAL,
}


class Service:
    """Answers frames.

    `is_ready` is what the readiness probe shows; `streams` are what a drain waits for.

    Args:
        tail: the artifact's tails.
        scheduler: decides when a request runs.
        limits: what a frame may claim.
    """

    def __init__(self, tail: Tail, scheduler: Scheduler, limits: Limits) -> None:
        self.tail = tail
        self.scheduler = scheduler
        self.limits = limits
        self.is_ready = True
        self.streams: set[asyncio.Task[None]] = set()
        self.metrics = Metrics()
        self.metrics.pending.set_function(lambda: scheduler.pending)
        self.metrics.ready.set_function(lambda: float(self.is_ready))

    async def drain(self) -> None:
        """Refuse new work; wait until accepted work is done and every stream has its answers."""
        self.is_ready = False
        await self.scheduler.drain()
        await asyncio.gather(*self.streams, return_exceptions=True)

    async def answer(self, data: bytes, references: References | None = None) -> Reply | Refusal:
        """Answer one frame; every failure becomes a refusal.

        Args:
            data: the frame.
            references: what was decoded before on its stream; None where there is no stream.
        """
        started = time.perf_counter()
        request: Request | None = None
        try:
            frame = decode_frame(data, self.limits)
            if not isinstance(frame, Request):
                raise WireError("a service takes requests only")
            request = frame
            self.tail.check(request)
            work = functools.partial(self.tail.answer, request, references=references)
            reply = await self.scheduler.submit(work, request.deadline_s)
        except SplitServeError as error:
            return self._refuse(error, request)
        except Exception:
            logger.exception("request failed", extra=_facts(request))
            return self._refuse(SplitServeError("internal error"), request)
        cut = self.tail.artifact.manifest.positions[request.cut]
        self.metrics.answered(cut, len(data), reply.timings)
        total_s = time.perf_counter() - started
        facts = {"cut": cut, "bytes": len(data), "total_s": round(total_s, 6)}
        logger.info("answered", extra=_facts(request) | facts)
        return reply

    def refuse_too_large(self, claimed: int) -> Refusal:
        """Refuse a frame that was not even read."""
        limit = self.limits.frame_bytes
        error = FrameTooLargeError(f"a frame of {claimed} bytes is over the limit of {limit}")
        return self._refuse(error, None)

    def _refuse(self, error: SplitServeError, request: Request | None) -> Refusal:
        code = next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)
        self.metrics.refused(code)
        logger.warning("refused", extra=_facts(request) | {"reason": code.name, "why": str(error)})
        # What the runtime says of its own failures is for the log, not for the peer.
        message = "internal error" if code is RefusalCode.INTERNAL else str(error)
        retry_after_s = error.retry_after_s if isinstance(error, OverloadedError) else 0.0
        if request is None:
            return Refusal(code, message, retry_after_s=retry_after_s)
        return Refusal(code, message, request.request_id, retry_after_s)


def _facts(request: Request | None) -> dict[str, str]:
    return {"request_id": request.request_id.hex() if request else "unknown"}
