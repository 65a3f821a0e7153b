"""From answers to figures: medians, predictions, regret and gain of each cell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from splitserve.bench.e2e.arms import ADAPTIVE, Arm
from splitserve.bench.e2e.result import STAGES, ArmResult, Cell, Gain, Ratio, Summary
from splitserve.bench.measure import median, p95, ratio_interval, slowdown_of
from splitserve.errors import MeasurementError
from splitserve.plan.decide import Worth
from splitserve.plans import Link, latency_s

Answer = Mapping[str, Any]
Answers = Mapping[int, Answer]  # by the turn in which they were given
NEAR = 0.05


@dataclass(frozen=True, slots=True)
class Setting:
    """One link, one slowdown, and what the planner says of them.

    Args:
        name: of the link.
        slowdown: asked for.
        link: as the planner sees it, the reply's transfer in its round trip.
        rtt_s: of the emulated link.
        is_crossing: whether the rate is B*.
        planner: name of the plan that it chose.
        worth: what it says that splitting is worth here.
        seed: of the resampling.
    """

    name: str
    slowdown: float
    link: Link
    rtt_s: float
    is_crossing: bool
    planner: str
    worth: Worth | None
    seed: int = 0


def total(answer: Answer) -> float:
    """Seconds from taking the picture up to its answer."""
    return float(answer["total_s"])


def arm_result(arm: Arm, by_turn: Answers, wanted: Sequence[int], link: Link) -> ArmResult:
    """Figures of one arm.

    Args:
        arm: the arm.
        by_turn: its answers by the turn in which they were given.
        wanted: the unsplit model's class at each turn.
        link: as the planner sees it.
    """
    answers, totals = list(by_turn.values()), [total(answer) for answer in by_turn.values()]
    measured_s = median(totals)
    predicted_s = latency_s(arm.offer.option, link) if arm.offer else None
    right = [answer["labels"][0]["index"] == wanted[turn] for turn, answer in by_turn.items()]
    return ArmResult(
        name=arm.name,
        role=arm.role,
        requests=len(answers),
        p50_s=measured_s,
        p95_s=p95(totals),
        bytes_up=median([answer["bytes_up"] for answer in answers]),
        agree=float(np.mean(right)),
        fallbacks=sum(answer["fallback"] is not None for answer in answers),
        predicted_s=predicted_s,
        error=None if predicted_s is None else predicted_s / measured_s - 1,
        stages_s={
            stage: median([answer["stages_s"].get(stage, 0.0) for answer in answers])
            for stage in STAGES
            if any(stage in answer["stages_s"] for answer in answers)
        },
    )


def paired(ours: Answers, theirs: Answers) -> tuple[list[float], list[float]]:
    """Total seconds of two arms, over the turns in which both answered."""
    turns = sorted(ours.keys() & theirs.keys())
    return [total(ours[turn]) for turn in turns], [total(theirs[turn]) for turn in turns]


def ratio_of(upper: Answers, lower: Answers, seed: int, less: float = 0.0) -> Ratio:
    """Ratio of two arms' median totals with its interval, less a constant."""
    value, low, high = ratio_interval(*paired(upper, lower), seed)
    return Ratio(value - less, low - less, high - less)


def compare(setting: Setting, rows: Sequence[ArmResult], answers: Mapping[str, Answers]) -> Cell:
    """Put one cell together.

    Args:
        setting: the link, and what the planner says of it.
        rows: figures of the arms.
        answers: of each arm, by its name.
    """

    def fastest(*roles: str) -> ArmResult | None:
        found = [row for row in rows if row.role in roles]
        return min(found, key=lambda row: row.p50_s, default=None)

    best, extreme = fastest("edge", "cloud", "split"), fastest("edge", "cloud")
    split, worth = fastest("split"), setting.worth
    if best is None or extreme is None:
        raise MeasurementError("an arm that runs on one side alone is missing")
    ours, seed = answers[setting.planner], setting.seed
    gain = None
    if split and worth:
        ratio = ratio_of(answers[extreme.name], answers[split.name], seed)
        reached = ratio.value / worth.bound
        gain = Gain(split.name, extreme.name, ratio, worth.gain, worth.bound, reached)
    return Cell(
        name=setting.name,
        slowdown=setting.slowdown,
        slowdown_measured=median(
            [slowdown_of(one) for them in answers.values() for one in them.values()]
        ),
        rate_bps=setting.link.uplink_bps,
        rtt_s=setting.rtt_s,
        is_crossing=setting.is_crossing,
        arms=tuple(rows),
        planner=setting.planner,
        best=best.name,
        regret=ratio_of(ours, answers[best.name], seed, less=1),
        extreme_regret=ratio_of(ours, answers[extreme.name], seed, less=1),
        adaptive_regret=ratio_of(answers[ADAPTIVE], answers[best.name], seed, less=1),
        gain=gain,
    )


def summarise(cells: Sequence[Cell]) -> Summary:
    """All cells together."""
    errors = [abs(row.error) for cell in cells for row in cell.arms if row.error is not None]
    regrets = [cell.regret.value for cell in cells]
    return Summary(
        error_median=median(errors),
        error_p90=float(np.percentile(errors, 90)),
        within_regret=float(np.mean([value <= NEAR for value in regrets])),
        worst_regret=max(regrets),
        worst_extreme_regret=max(cell.extreme_regret.value for cell in cells),
        worst_adaptive_regret=max(cell.adaptive_regret.value for cell in cells),
    )
