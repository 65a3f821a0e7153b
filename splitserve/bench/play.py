"""Playing a trace on a running link."""

import threading
import time
from collections.abc import Callable, Sequence

from splitserve.plan.trace import Change


def play(trace: Sequence[Change], set_rate: Callable[[float], None], stop: threading.Event) -> None:
    """Make every change at its time, counted from now, until the end or until `stop` is set."""
    started = time.perf_counter()
    for change in trace:
        if stop.wait(max(0.0, started + change.at_s - time.perf_counter())):
            return
        set_rate(change.rate_bps)
