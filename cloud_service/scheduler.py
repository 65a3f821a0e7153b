"""When a request runs: in order of arrival on worker threads, a bounded number waiting.

Batching, deadlines and fairness belong here; `Service` only hands in work.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from splitserve.errors import DrainingError, ExpiredError, OverloadedError

Result = TypeVar("Result")


class Scheduler:
    """Runs work on threads of its own.

    Args:
        workers: requests that run at once.
        waiting: most requests that may wait; one more is refused.
    """

    def __init__(self, workers: int, waiting: int) -> None:
        self._workers = workers
        self._waiting = waiting
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="tail")
        self._pending = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = asyncio.Event()

    @property
    def pending(self) -> int:
        """Requests that wait or run."""
        return self._pending

    @property
    def load(self) -> float:
        """Share of the workers that are busy, 0 to 1."""
        return min(1.0, self._pending / self._workers)

    async def submit(
        self, work: Callable[[float, float], Result], deadline_s: float | None
    ) -> Result:
        """Run `work(queue_s, load)` on a worker.

        Args:
            work: gets the seconds it waited and the share of busy workers.
            deadline_s: seconds after which nobody wants the result.

        Raises:
            DrainingError: the service is about to stop.
            OverloadedError: too many requests wait.
            ExpiredError: the deadline passed while the request waited.
        """
        if self.draining.is_set():
            raise DrainingError("the service is about to stop")
        if self._pending >= self._workers + self._waiting:
            raise OverloadedError(f"{self._pending} requests are pending, the limit is reached")
        arrived = time.perf_counter()
        load = self.load
        self._pending += 1
        self._idle.clear()

        def timed() -> Result:
            queue_s = time.perf_counter() - arrived
            if deadline_s is not None and queue_s > deadline_s:
                raise ExpiredError(f"waited {queue_s:.3f} s, the deadline was {deadline_s:.3f} s")
            return work(queue_s, load)

        loop = asyncio.get_running_loop()

        def done(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._finished)

        running = self._threads.submit(timed)
        running.add_done_callback(done)  # not when the caller leaves: the thread works on
        return await asyncio.wrap_future(running)

    def _finished(self) -> None:
        self._pending -= 1
        if not self._pending:
            self._idle.set()

    async def drain(self) -> None:
        """Refuse new work and wait until what was accepted is done."""
        self.draining.set()
        await self._idle.wait()

    def close(self) -> None:
        """End the worker threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
