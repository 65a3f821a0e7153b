"""What the agent believes of its link and of both machines, learned from requests it made anyway.

Nothing here reads a clock or touches a network: every method takes measured durations.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from splitserve.plans import Link
from splitserve.tensors import Array

WINDOW = 20
HALF_LIFE = 6
LONGEST_AGE_S = 60.0
LARGEST_BYTES, LONGEST_S = 2.0**40, 86400.0
NARROWEST, WIDEST = 0.15, 0.35
SPREADS = 4.5  # median deviations, which is three standard deviations of normal noise
MARGIN_S = 0.001
SIZES_APART = 2.0
PAIR_APART = 1.5
DEAD_BAND = 0.1
FASTEST_S = 8e-9  # seconds a byte at 1 Gbit/s, beyond which no plan differs

SETTLING = 3
LEVEL_WINDOW = 9
LARGEST_BIAS = 1.5


class Transfer(NamedTuple):
    """One request on the link: when it ended, its bytes, its seconds without the cloud's."""

    at_s: float
    size_bytes: float
    took_s: float


def weighted_median(values: Array, weights: Array) -> float:
    """The value below which half of the weight lies."""
    order = np.argsort(values)
    half = np.searchsorted(np.cumsum(weights[order]), weights.sum() / 2)
    return float(values[order[min(half, len(values) - 1)]])


class LinkEstimate:
    """Round trip and seconds a byte, by robust regression of transfer time on bytes.

    Theil-Sen: the slope is the median of the slopes between pairs of transfers of different
    sizes, the newer and the farther apart counting more, and the intercept a median too. Where
    the latest transfers all have nearly the same size no slope can be told: then the round trip
    stays what it was, and a change of more than a tenth is put down to the rate.

    A transfer far from what was expected is believed at once, but alone: the next one either
    confirms that the link has changed, and what was before is forgotten, or shows that it was an
    outlier, and it is forgotten. So a step of the link is known after one transfer and settled
    after two. `far` is three standard deviations of the transfers seen, 15 to 35 %.

    Source: Theil (1950), Sen (1968); weights by distance after Jaeckel (1972).

    Args:
        link: where the estimates start.
    """

    def __init__(self, link: Link) -> None:
        self.rtt_s = link.rtt_s
        self.byte_s = 8 / link.uplink_bps
        self._settled = (self.rtt_s, self.byte_s)
        self._transfers: deque[Transfer] = deque(maxlen=WINDOW)
        self._doubted: Transfer | None = None

    @property
    def uplink_bps(self) -> float:
        """Bits per second."""
        return 8 / self.byte_s

    @property
    def is_doubtful(self) -> bool:
        """Whether the latest transfer surprised and awaits the next."""
        return self._doubted is not None

    def one_size(self, latest: int = WINDOW) -> tuple[float, float] | None:
        """Smallest and largest of the latest transfers, where too near to tell a slope."""
        sizes = [transfer.size_bytes for transfer in list(self._transfers)[-latest:]]
        if not sizes or max(sizes) >= SIZES_APART * min(sizes):
            return None
        return min(sizes), max(sizes)

    def transfer_s(self, size_bytes: float) -> float:
        """Seconds that a request of this size is expected to spend on the link."""
        return self.rtt_s + size_bytes * self.byte_s

    def observe(self, transfer: Transfer) -> None:
        """Learn from one transfer; one that cannot be is passed over."""
        if not (1 <= transfer.size_bytes <= LARGEST_BYTES and 0 <= transfer.took_s <= LONGEST_S):
            return
        while self._transfers and transfer.at_s - self._transfers[0].at_s > LONGEST_AGE_S:
            self._transfers.popleft()
        way = self._surprise(transfer, self._settled)
        doubted, self._doubted = self._doubted, None
        if way and not self._agrees(transfer):
            if doubted is None or self._surprise(doubted, self._settled) != way:
                self._doubted = transfer
                self.rtt_s, self.byte_s = _fit([transfer], *self._settled)
                return
            self._transfers.clear()
            self._transfers.append(doubted)
        self._transfers.append(transfer)
        self._settled = _fit(self._transfers, *self._settled)
        self.rtt_s, self.byte_s = self._settled

    def _agrees(self, transfer: Transfer) -> bool:
        """Whether a surprise of another size and all that was before fit one line."""
        together = [*self._transfers, transfer]
        line = _fit(together, *self._settled)
        far = [self._surprise(one, line) != 0 for one in together]
        return not far[-1] and sum(far) < len(far) / 2

    def _surprise(self, transfer: Transfer, line: tuple[float, float]) -> int:
        """Tell by the sign whether a transfer was far faster or slower than expected, else 0."""
        expected_s = line[0] + transfer.size_bytes * line[1]
        low, high = sorted((expected_s, transfer.took_s))
        if high <= low * (1 + self._tolerance()) + MARGIN_S:
            return 0
        return 1 if transfer.took_s > expected_s else -1

    def _tolerance(self) -> float:
        if len(self._transfers) < 4:
            return WIDEST
        rtt_s, byte_s = self._settled
        expected = [max(1e-9, rtt_s + size * byte_s) for _, size, _ in self._transfers]
        off = [abs(t.took_s / s - 1) for t, s in zip(self._transfers, expected, strict=True)]
        return min(WIDEST, max(NARROWEST, SPREADS * sorted(off)[len(off) // 2]))


def _fit(transfers: Sequence[Transfer], rtt_s: float, byte_s: float) -> tuple[float, float]:
    """Fit round trip and seconds a byte; the arguments are what was believed before."""
    sizes = np.array([transfer.size_bytes for transfer in transfers])
    took = np.array([transfer.took_s for transfer in transfers])
    weights = 0.5 ** (np.arange(len(sizes))[::-1] / HALF_LIFE)
    if sizes.max() >= SIZES_APART * sizes.min():
        slope = _slope(sizes, took, weights)
        if slope > FASTEST_S:
            return max(0.0, weighted_median(took - slope * sizes, weights)), slope
    off = weighted_median(took / np.maximum(1e-9, rtt_s + sizes * byte_s), weights)
    if abs(off - 1) <= DEAD_BAND:
        return rtt_s, byte_s
    slope = weighted_median((took - rtt_s) / sizes, weights)
    if slope > FASTEST_S:
        return rtt_s, slope
    return weighted_median(took, weights), FASTEST_S  # the round trip itself has become shorter


def _slope(sizes: Array, took: Array, weights: Array) -> float:
    first, second = np.triu_indices(len(sizes), 1)
    low, high = np.minimum(sizes[first], sizes[second]), np.maximum(sizes[first], sizes[second])
    apart = high >= PAIR_APART * low
    first, second = first[apart], second[apart]
    runs = sizes[second] - sizes[first]
    slopes = (took[second] - took[first]) / runs
    return weighted_median(slopes, weights[first] * weights[second] * np.abs(runs))


class Level:
    """A quantity that is noisy and now and then jumps: the median of the latest values.

    As with the link, a value far off is believed at once and dropped unless the next confirms it.
    """

    def __init__(self, value: float) -> None:
        self.value = value
        self._values: deque[float] = deque(maxlen=LEVEL_WINDOW)
        self._doubted: float | None = None

    def observe(self, value: float) -> None:
        """Learn one value; what is negative or not finite is passed over."""
        if not 0 <= value < math.inf:
            return
        settled = self._median()
        way = _way(value, settled)
        doubted, self._doubted = self._doubted, None
        if way and (doubted is None or _way(doubted, settled) != way):
            self._doubted = self.value = value
            return
        if way and doubted is not None:
            self._values.clear()
            self._values.append(doubted)
        self._values.append(value)
        self.value = self._median()

    def _median(self) -> float:
        if not self._values:
            return self.value
        ordered = sorted(self._values)
        return (ordered[len(ordered) // 2] + ordered[(len(ordered) - 1) // 2]) / 2


def _way(value: float, settled: float) -> int:
    low, high = sorted((value, settled))
    return 0 if high <= low * (1 + WIDEST) + MARGIN_S else (1 if value > settled else -1)


class SideLoad:
    """How much slower one side is than when it was profiled, and how wrong each profile is.

    Measured over profiled seconds give a ratio. While one plan runs, what changes is the load of
    the side; in the first few requests after another plan, what differs is taken for an error of
    the plan's profile, or else two plans whose profiles disagree would take turns for ever.

    Args:
        profiled_s: seconds of every option, as profiled.
    """

    def __init__(self, profiled_s: Sequence[float]) -> None:
        self._profiled_s = np.array(profiled_s)
        self._bias = np.ones(len(profiled_s))
        self._load = Level(1.0)
        self._last: int | None = None
        self._first: list[float] | None = None

    @property
    def factor(self) -> float:
        """The side's load; 1 is that of the profile."""
        return self._load.value

    @property
    def seconds(self) -> Array:
        """(options,), float64; what each option is expected to take now."""
        return np.asarray(self._profiled_s * self._bias * self._load.value)

    def observe(self, option: int, seconds: float, *, is_passing: bool = False) -> None:
        """Learn what one request took.

        Args:
            option: what it ran.
            seconds: what this side measured.
            is_passing: whether the request before and the one after it run another option.
        """
        if self._profiled_s[option] <= 0 or not 0 < seconds < math.inf:
            return
        ratio = seconds / float(self._profiled_s[option])
        if not is_passing:
            if self._last not in (None, option):
                self._first = []
            self._last = option
        if self._first is None or is_passing:
            self._load.observe(ratio / float(self._bias[option]))
            return
        self._first.append(ratio / self._load.value)
        middle = sorted(self._first)[len(self._first) // 2]
        self._bias[option] = min(LARGEST_BIAS, max(1 / LARGEST_BIAS, middle))
        if len(self._first) == SETTLING:
            self._first = None
