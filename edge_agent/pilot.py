"""Between the agent and its controller: options as plans, log lines, counters."""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from edge_agent.ask import Begun, CloudAnswer
from edge_agent.controller import Choice, Controller, Switch
from edge_agent.fallback import Breaker
from edge_agent.head import Plan
from splitserve.plans import Link, PlanOption

logger = logging.getLogger(__name__)

UNITS = {"uplink_bps": 0, "rtt_s": 6, "before_s": 6, "after_s": 6, "queue_s": 6}


@dataclass(slots=True)
class Counts:
    """What an adaptive agent has done since it started."""

    requests: dict[str, int] = field(default_factory=dict)
    """By the option that was taken."""
    switches: int = 0
    probes: int = 0
    trials: int = 0
    overdue: int = 0
    replies: int = 0
    early: int = 0
    """Requests that an exit answered."""


class Pilot:
    """Chooses a plan for each request and tells the controller what became of it.

    Args:
        options: of the plan file.
        plans: the same, ready to run.
        deadline_s: of a request.
        expected: the link that the estimates start from.
    """

    def __init__(
        self,
        options: Sequence[PlanOption],
        plans: Sequence[Plan],
        deadline_s: float,
        expected: Link | None = None,
    ) -> None:
        self.controller = Controller(options, deadline_s, expected)
        self.plans = tuple(plans)
        self.counts = Counts()
        self._encode_s: dict[int, float] = {}

    def choose(self, breaker: Breaker) -> Choice:
        """Choose for one request, and log it when the plan changes."""
        choice = self.controller.choose(
            time.perf_counter(), is_away=breaker.is_open, may_probe=breaker.is_probe_due
        )
        name = self.name(choice.option)
        self.counts.requests[name] = self.counts.requests.get(name, 0) + 1
        self.counts.probes += choice.probe is not None
        self.counts.trials += choice.is_trial
        if choice.switch is not None:
            self.counts.switches += 1
            logger.info("plan changed", extra=_facts(choice.switch))
        return choice

    def name(self, option: int) -> str:
        """Name of an option."""
        return self.controller.options[option].name

    def name_of(self, plan: Plan) -> str:
        """Name of the option that a plan is of."""
        return next(self.name(index) for index, one in enumerate(self.plans) if one is plan)

    def edge_ran(self, begun: Begun) -> None:
        """Tell what the device took, at a remote cut up to the encoding, else for all of it.

        A probe is left out: it runs the model in two pieces. An exit's own time is left out too,
        for no profile has it, and an early answer, which encodes nothing, counts with the encoding
        of the latest request of its option; before there is one it tells nothing.
        """
        work = begun.work
        if work is None or begun.is_probe:
            return
        edge_s = sum(s for stage, s in work.stages_s.items() if stage != "exit")
        if work.is_early:
            self.counts.early += 1
            if begun.option not in self._encode_s:
                return
            edge_s += self._encode_s[begun.option]
        elif "encode" in work.stages_s:
            self._encode_s[begun.option] = work.stages_s["encode"]
        self.controller.edge_ran(begun.option, edge_s)

    def replied(self, begun: Begun, answer: CloudAnswer) -> None:
        """Tell of a reply."""
        self.counts.replies += 1
        self.controller.transferred(begun.option, answer.transfer, answer.timings)
        if answer.transfer is not None and logger.isEnabledFor(logging.DEBUG):
            seen = {"bytes": answer.transfer.size_bytes, "took_s": answer.transfer.took_s}
            logger.debug("transfer", extra={**begun.facts, **seen, **self._estimates()})

    def overdue(self) -> None:
        """Tell that a reply is not waited for any more."""
        self.counts.overdue += 1
        self.controller.overdue()

    def log_summary(self) -> None:
        """Log the counters and the latest estimates."""
        logger.info("plans in total", extra=asdict(self.counts) | self._estimates())

    def _estimates(self) -> dict[str, float]:
        link = self.controller.link
        return {"uplink_bps": round(link.uplink_bps), "rtt_s": round(link.rtt_s, 6)}


def _facts(switch: Switch) -> dict[str, object]:
    """Round what a log line says of a switch."""
    return {
        name: round(value, UNITS.get(name, 3)) if isinstance(value, float) else value
        for name, value in asdict(switch).items()
    }
