"""One thread that computes: two heads at once would only slow each other down."""

import asyncio
import itertools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")

FINISH = 0  # an answer that is due goes before a head that is not begun
HEAD = 1
LATER = 2  # what no answer waits for
END = 3


class ComputeThread:
    """Runs calls one at a time, those of the lower priority number first, else in order."""

    def __init__(self) -> None:
        self._calls: queue.PriorityQueue[tuple[int, int, Future[Any], Callable[[], Any]]] = (
            queue.PriorityQueue()
        )
        self._order = itertools.count()
        threading.Thread(target=self._work, daemon=True, name="compute").start()

    async def run(self, priority: int, call: Callable[..., Result], *arguments: object) -> Result:
        """Run a call on the thread and wait for its result."""
        future: Future[Result] = Future()
        self._put(priority, future, lambda: call(*arguments))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the thread once what runs now is done."""
        self._put(END, Future(), lambda: None)

    def _put(self, priority: int, future: Future[Any], call: Callable[[], Any]) -> None:
        self._calls.put((priority, next(self._order), future, call))

    def _work(self) -> None:
        while True:
            priority, _, future, call = self._calls.get()
            if priority == END:
                return
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001  # handed to whoever waits
                future.set_exception(error)
            else:
                future.set_result(result)
