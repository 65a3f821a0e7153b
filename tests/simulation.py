"""A link, two machines and a flow of requests, simulated: seconds are added up, nobody waits."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edge_agent.controller import Controller, Switch
from edge_agent.estimate import Transfer
from edge_agent.fallback import Breaker
from splitserve.plans import Link, Load, PlanOption, latency_s
from splitserve.wire import Timings

PERIOD_S = 0.2
DEADLINE_S = 2.0
EDGE_S = 0.24


def option(name: str, bytes_up: float, edge_s: float, cloud_s: float) -> PlanOption:
    return PlanOption(
        name=name,
        cut=name,
        codec="raw" if bytes_up else "none",
        bytes_up=bytes_up,
        edge_s=edge_s,
        edge_p90_s=edge_s,
        cloud_s=cloud_s,
        cloud_p90_s=cloud_s,
    )


OPTIONS = (
    option("edge", 0, EDGE_S, 0.0),
    option("deep", 1500, 0.18, 0.004),
    option("middle", 4000, 0.09, 0.01),
    option("jpeg", 20000, 0.02, 0.016),
)


@dataclass
class World:
    """What is true at one moment; `uplink_bps` 0 lets nothing pass."""

    uplink_bps: float = 20e6
    rtt_s: float = 0.02
    edge: float = 1.0
    cloud: float = 1.0
    queue_s: float = 0.0

    def truth_s(self, one: PlanOption) -> float:
        """Seconds without noise; the deadline where nothing passes."""
        if not one.is_local and not self.uplink_bps:
            return DEADLINE_S
        load = Load(edge=self.edge, cloud=self.cloud, queue_s=self.queue_s)
        return latency_s(one, Link(uplink_bps=self.uplink_bps or 1.0, rtt_s=self.rtt_s), load)


@dataclass
class Request:
    """One simulated request."""

    at_s: float
    option: PlanOption
    took_s: float
    best: PlanOption
    best_s: float
    is_trial: bool
    probe: PlanOption | None


@dataclass
class Simulation:
    """Requests every 200 ms against a world that changes.

    Args:
        world: what is true at a time, seconds from the start.
        noise: standard deviation of every duration, relative.
        options: what the controller chooses among.
        bend: what a transfer really takes, for outliers: (number of the transfer, seconds).
    """

    world: Callable[[float], World]
    noise: float = 0.0
    options: Sequence[PlanOption] = OPTIONS
    expected: Link | None = None
    bend: Callable[[int, float], float] = lambda _, seconds: seconds
    seed: int = 0
    requests: list[Request] = field(default_factory=list)
    switches: list[tuple[float, Switch]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.controller = Controller(self.options, DEADLINE_S, self.expected)
        self.now_s = 0.0
        self._random = random.Random(self.seed)
        self._breaker = Breaker(lambda: self.now_s, random.Random(self.seed))
        self._transfers = 0
        self._pending: tuple[int, float] | None = None

    def run(self, seconds: float) -> "Simulation":
        """Let requests flow for some time."""
        until_s = self.now_s + seconds
        while self.now_s < until_s - 1e-9:
            started_s = self.now_s
            took_s = self._request()
            self.now_s = started_s + max(PERIOD_S, took_s)
        return self

    def _noisy(self, seconds: float) -> float:
        return seconds * max(0.2, self._random.gauss(1.0, self.noise))

    def _request(self) -> float:
        self._deliver()
        world = self.world(self.now_s)
        choice = self.controller.choose(
            self.now_s,
            is_away=self._breaker.is_open,
            may_probe=self._breaker.is_probe_due,
        )
        if choice.switch:
            self.switches.append((self.now_s, choice.switch))
        one = self.options[choice.option]
        edge_s = self._noisy(one.edge_s * world.edge)
        self.controller.edge_ran(choice.option, edge_s)
        took_s = edge_s if one.is_local else edge_s + self._ask(choice.option, world)
        if choice.probe is not None:
            self._probe(choice.probe, world)
        best = min(self.options, key=world.truth_s)
        probe = None if choice.probe is None else self.options[choice.probe]
        self.requests.append(
            Request(self.now_s, one, took_s, best, world.truth_s(best), choice.is_trial, probe)
        )
        return took_s

    def _ask(self, index: int, world: World) -> float:
        """Ask the cloud; return the seconds it takes, the edge's finishing included."""
        finish_s = (EDGE_S - self.options[index].edge_s) * world.edge
        patience_s = self.controller.patience_s(index, finish_s)
        if not world.uplink_bps:
            self.controller.overdue()
            self.controller.overdue_ended()
            self._breaker.failed()
            return patience_s + finish_s
        return self._reply(index, world)

    def _reply(self, index: int, world: World) -> float:
        one = self.options[index]
        transfer_s = self._noisy(world.rtt_s + 8 * one.bytes_up / world.uplink_bps)
        transfer_s = self.bend(self._transfers, transfer_s)
        self._transfers += 1
        cloud_s = self._noisy(one.cloud_s * world.cloud)
        transfer = Transfer(self.now_s + transfer_s, one.bytes_up, transfer_s)
        self.controller.transferred(index, transfer, Timings(world.queue_s, 0.0, cloud_s))
        self._breaker.succeeded()
        return transfer_s + world.queue_s + cloud_s

    def _probe(self, index: int, world: World) -> None:
        """Upload after the answer; where nothing passes, the reply waits for the link."""
        if not self._breaker.allows():
            self.controller.probe_ended(0.0)
        elif world.uplink_bps:
            self._reply(index, world)
            self.controller.probe_ended(0.003)
        else:
            self._pending = (index, self.now_s)

    def _deliver(self) -> None:
        """End the probe that waits: by a reply when the link is back, by a time-out after 10 s."""
        if self._pending is None:
            return
        index, since_s = self._pending
        world = self.world(self.now_s)
        if world.uplink_bps:
            self.controller.transferred(index, None, Timings(0.0, 0.0, 0.01))
            self._breaker.succeeded()
        elif self.now_s - since_s < 10:
            return
        else:
            self._breaker.failed()
        self._pending = None
        self.controller.probe_ended(0.003)
