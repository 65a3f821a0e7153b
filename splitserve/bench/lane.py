"""When bytes come out of a link whose rate changes, to zero and back, while they are under way."""

import math
import threading
from bisect import bisect_left
from typing import NamedTuple


class _Step(NamedTuple):
    """From `at_s` on, when so many bits had passed, the rate is this; None is no limit."""

    at_s: float
    bits: float
    rate_bps: float | None


class Place(NamedTuple):
    """Where some bytes stand in a lane: behind so many bits, not before `from_s`."""

    bits: float
    from_s: float


class Lane:
    """One direction of a link, shared by all its connections.

    Bytes keep their place; when they come out follows from the rates that the link has had and has.

    Args:
        now_s: the clock.
        rate_bps: bits per second, 0 lets nothing pass, None is no limit.
    """

    def __init__(self, now_s: float, rate_bps: float | None) -> None:
        self._lock = threading.Lock()
        self._steps = [_Step(now_s, 0.0, rate_bps)]
        self._taken_bits = 0.0

    def set_rate(self, now_s: float, rate_bps: float | None) -> None:
        """Change the rate from now on, for bytes under way too."""
        with self._lock:
            self._steps.append(_Step(now_s, self._bits(now_s), rate_bps))

    def take(self, now_s: float, size_bytes: int) -> Place:
        """Take a place for some bytes behind all that came before."""
        with self._lock:
            bits = 0 if self._steps[-1].rate_bps is None else 8 * size_bytes
            self._taken_bits = max(self._taken_bits, self._bits(now_s)) + bits
            return Place(self._taken_bits, now_s)

    def out_s(self, place: Place) -> float:
        """When the last byte of a place comes out, if no rate changes any more; may be infinite."""
        with self._lock:
            first = max(1, bisect_left(self._steps, place.bits, key=lambda step: step.bits)) - 1
            for index, step in enumerate(self._steps[first:], first):
                missing = place.bits - step.bits
                if missing <= 0 or step.rate_bps is None:
                    return max(place.from_s, step.at_s)
                out_s = step.at_s + missing / step.rate_bps if step.rate_bps else math.inf
                if index + 1 == len(self._steps) or out_s < self._steps[index + 1].at_s:
                    return max(place.from_s, out_s)
            return math.inf

    def _bits(self, now_s: float) -> float:
        step = self._steps[-1]
        return step.bits + (step.rate_bps or 0.0) * (now_s - step.at_s)
