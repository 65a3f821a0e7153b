"""Which plan the next request takes: predicted latency, hysteresis, deadline, and when to probe.

Pure and synchronous: it is told durations and asked for a choice, and does no input or output.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_agent.estimate import SIZES_APART, Level, LinkEstimate, SideLoad, Transfer
from splitserve.errors import UsageError
from splitserve.plans import Link, PlanOption
from splitserve.tensors import Array
from splitserve.wire import Timings

GAIN = 0.1
REPEATS = 2
LASTING_GAIN = 0.04
LASTING_REPEATS = 20
START = Link(uplink_bps=10e6, rtt_s=0.03)

FRAME_SHARE = 0.2  # what one frame counts in the mean of an option's bytes

PROBE_GAIN = 0.15
PROBES_OF_ONE_SIZE = 6
PROBE_LINK_SHARE = 0.5
PROBE_EDGE_SHARE = 0.04
PROBE_COSTS = 3  # probes of which the cheapest tells what encoding costs
TRIAL_SHARE = 0.01
TRIAL_LARGEST = 0.5
PATIENCE = 2.0
PATIENCE_MORE_S = 0.05


@dataclass(frozen=True, slots=True)
class Switch:
    """A change of the plan, with the numbers that it rests on; seconds are predicted."""

    before: str
    after: str
    before_s: float
    after_s: float
    uplink_bps: float
    rtt_s: float
    edge_load: float
    cloud_load: float
    queue_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Choice:
    """What one request does.

    Args:
        option: index of the option that it takes.
        probe: index of an option to upload by as well, after the answer, to learn of the link.
        is_trial: whether the option is tried for one request only, to learn of the link.
        switch: the change of the plan that this request begins with.
    """

    option: int
    probe: int | None = None
    is_trial: bool = False
    switch: Switch | None = None


class Controller:
    """Chooses among options by what requests have lately cost.

    Rules, each of which tests/edge_agent/test_controller.py shows:

    - The fastest option by prediction is wanted; one that misses the deadline is not, while
      another meets it. The plan changes when the gain is over 10 % after each of two requests in
      a row, or over 4 % after twenty; at once to edge-only when the cloud failed or is overdue,
      and at once back.
    - On edge-only a request also uploads by the best split after its answer is out (a probe),
      unless one is under way or that would take over half of the link's time or over 4 % of the
      device's. A probe that shows a gain over 15 % changes the plan at once.
    - While all transfers have one size, a change may be the round trip's and not the rate's. If
      a larger option would then be over 10 % faster, one request tries it (a trial), as soon as
      1 % of all predicted time has paid for what it is expected to lose, at most half a request.

    Args:
        options: at least one of them local.
        deadline_s: of a request.
        expected: the link that the estimates start from.

    Raises:
        UsageError: no option answers on the device alone.
    """

    def __init__(
        self, options: Sequence[PlanOption], deadline_s: float, expected: Link | None = None
    ) -> None:
        local = [index for index, option in enumerate(options) if option.is_local]
        if not local:
            raise UsageError(
                "the plan file has no option that answers on the device alone, which the agent"
                " needs while the cloud is away; make it again with: splitserve plan"
            )
        self.options = tuple(options)
        self.link = LinkEstimate(expected or START)
        self.edge = SideLoad([option.edge_s for option in options])
        self.cloud = SideLoad([option.cloud_s for option in options])
        self._queue = Level(0.0)
        self._local = min(local, key=lambda index: options[index].edge_s)
        self._deadline_s = deadline_s
        self._is_remote = np.array([not option.is_local for option in options])
        self._bytes = np.array([option.bytes_up for option in options])
        self._current: int | None = None
        self._heard = self._counted = self._count = self._lasting = 0
        self._overdue = 0
        self._unsettled = 0  # requests after an outage in which one sign suffices
        self._has_probed = False
        self._is_probing = False
        self._since_probe = 0
        self._probe_from_s = -math.inf
        self._probe_edge_s: deque[float] = deque(maxlen=PROBE_COSTS)
        self._credit_s = 0.0

    def predict(self) -> Array:
        """(options,), float64; seconds that each option is expected to take from now on."""
        remote_s = self._bytes * self.link.byte_s + (self.link.rtt_s + self._queue.value)
        return np.asarray(self.edge.seconds + self._is_remote * (remote_s + self.cloud.seconds))

    def choose(self, now_s: float, *, is_away: bool = False, may_probe: bool = False) -> Choice:
        """Choose for one request.

        Args:
            now_s: clock that never goes back.
            is_away: whether the cloud failed last.
            may_probe: whether it may be asked again nevertheless.
        """
        predicted = self.predict()
        if is_away or self._overdue:
            self._unsettled = REPEATS
            switch = self._change(self._local, predicted, "away" if is_away else "overdue")
            return Choice(self._local, self._probe(predicted) if may_probe else None, switch=switch)
        switch = self._consider(predicted)
        current = self._local if self._current is None else self._current
        if self.options[current].is_local:
            self._since_probe += 1
            is_due = self._is_probe_due(now_s, float(predicted[current]))
            return Choice(current, self._probe(predicted) if is_due else None, switch=switch)
        trial = self._trial(predicted, current) if switch is None else None
        if trial is not None:
            return Choice(trial, is_trial=True)
        return Choice(current, switch=switch)

    def edge_ran(self, option: int, edge_s: float) -> None:
        """Tell what picture, head and encoding took, or for a local option the whole model."""
        self.edge.observe(option, edge_s, is_passing=option != self._current)
        self._heard += self.options[option].is_local and not self.link.is_doubtful

    def transferred(self, option: int, transfer: Transfer | None, timings: Timings) -> None:
        """Tell of a reply.

        Args:
            option: what the request took.
            transfer: its frame on the link; None where the time tells nothing of the link (a
                connection had to be opened, a frame was sent twice).
            timings: the service's.
        """
        cloud_s = timings.decode_s + timings.compute_s
        self.cloud.observe(option, cloud_s, is_passing=option != self._current)
        self._queue.observe(timings.queue_s)
        self._heard += 1
        if transfer is None:
            return
        self._bytes[option] += FRAME_SHARE * (transfer.size_bytes - self._bytes[option])
        self.link.observe(transfer)
        self._unsettled = max(0, self._unsettled - 1)
        if self._is_probing:
            self._has_probed = True
            # A surprise is soon confirmed: one that waited for a silent link would silence probes.
            rest_s = 0.0 if self.link.is_doubtful else transfer.took_s * (1 / PROBE_LINK_SHARE - 1)
            self._probe_from_s = transfer.at_s + rest_s

    def probe_ended(self, encode_s: float) -> None:
        """Tell that a probe is over, however it went, and what it cost the device."""
        self._is_probing = False
        self._probe_edge_s.append(encode_s)

    def overdue(self) -> None:
        """Tell that a reply is later than anything expected; the request was finished here."""
        self._overdue += 1

    def overdue_ended(self) -> None:
        """Tell that an overdue request has its reply, or has failed."""
        self._overdue -= 1

    def patience_s(self, option: int, finish_s: float) -> float:
        """Seconds to wait for a reply before finishing here.

        Waiting as long beyond the expected time as finishing takes costs at most twice what the
        better of the two would have (ski rental).
        """
        rest_s = float(self.predict()[option] - self.edge.seconds[option])
        return PATIENCE * rest_s + finish_s + PATIENCE_MORE_S

    def _consider(self, predicted: Array) -> Switch | None:
        """Change the plan if that is worth it, and has been for long enough."""
        best = self._best(predicted)
        if self._current is None:
            self._current = best
            return None
        has_probed, self._has_probed = self._has_probed, False
        if self._counted == self._heard:
            return None  # nothing new was heard since this was counted
        self._counted = self._heard
        self._lasting = self._lasting + 1 if self._gains(predicted, best, LASTING_GAIN) else 0
        self._count = self._count + 1 if self._gains(predicted, best, GAIN) else 0
        if self._count and self._unsettled:
            return self._change(best, predicted, "recovery")
        if has_probed and self._gains(predicted, best, PROBE_GAIN):
            return self._change(best, predicted, "probe")
        if self._count >= REPEATS or self._lasting >= LASTING_REPEATS:
            return self._change(best, predicted, "gain")
        return None

    def _best(self, predicted: Array) -> int:
        in_time = np.where(predicted <= self._deadline_s, predicted, np.inf)
        best = int(in_time.argmin())
        return best if in_time[best] < np.inf else int(predicted.argmin())

    def _gains(self, predicted: Array, best: int, share: float) -> bool:
        """Whether an option is faster by a share than the current one, or alone in time."""
        best_s, current_s = float(predicted[best]), float(predicted[self._current])
        is_late = best_s <= self._deadline_s < current_s
        return best != self._current and (is_late or best_s < (1 - share) * current_s)

    def _change(self, option: int, predicted: Array, reason: str) -> Switch | None:
        self._count = self._lasting = 0
        before, self._current = self._current, option
        if before is None or before == option:
            return None
        return Switch(
            before=self.options[before].name,
            after=self.options[option].name,
            before_s=float(predicted[before]),
            after_s=float(predicted[option]),
            uplink_bps=self.link.uplink_bps,
            rtt_s=self.link.rtt_s,
            edge_load=self.edge.factor,
            cloud_load=self.cloud.factor,
            queue_s=self._queue.value,
            reason=reason,
        )

    def _is_probe_due(self, now_s: float, local_s: float) -> bool:
        # One that a busy machine held up counts no more than a request, and alone not at all.
        cost_s = min(local_s, min(self._probe_edge_s, default=0.0))
        every = max(1.0, cost_s / max(1e-9, PROBE_EDGE_SHARE * local_s))
        return self._since_probe >= every and now_s >= self._probe_from_s and not self._is_probing

    def _probe(self, predicted: Array) -> int | None:
        """Begin a probe by the best option that uploads, if there is one."""
        if not self._is_remote.any():
            return None
        self._is_probing, self._since_probe = True, 0
        sizes, is_open = self.link.one_size(PROBES_OF_ONE_SIZE), self._is_remote
        if sizes is not None:  # another size tells the rate from the round trip
            is_near = self._bytes * SIZES_APART > sizes[0]
            is_apart = is_open & ~(is_near & (self._bytes < SIZES_APART * sizes[1]))
            is_open = is_apart if is_apart.any() else is_open
        return int(np.where(is_open, predicted, np.inf).argmin())

    def _trial(self, predicted: Array, current: int) -> int | None:
        """Find an option worth one request, because the link may be better than it looks."""
        limit_s = TRIAL_LARGEST * float(predicted[current])
        self._credit_s = min(limit_s, self._credit_s + TRIAL_SHARE * float(predicted[current]))
        sizes = self.link.one_size()
        if sizes is None or self._count:
            return None
        largest = sizes[1]
        # At best everything that the transfers took is round trip, and bytes cost nothing.
        at_best = predicted - self._is_remote * (self._bytes - largest) * self.link.byte_s
        loss_s = predicted - predicted[current]
        is_open = self._is_remote & (self._bytes >= SIZES_APART * largest)
        is_open &= (
            (predicted <= self._deadline_s)
            & (loss_s <= self._credit_s)
            & (at_best < (1 - GAIN) * predicted[current])
        )
        if not is_open.any():
            return None
        trial = int(np.where(is_open, at_best, np.inf).argmin())
        self._credit_s -= max(0.0, float(loss_s[trial]))
        return trial
