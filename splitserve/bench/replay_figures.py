"""What a replay says: totals, ratios, how fast the adaptive agent settles."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from splitserve.bench.flow import ANSWER_S, Asked, Flow
from splitserve.bench.measure import median, p95, total_ratio_interval
from splitserve.errors import MeasurementError
from splitserve.plan.trace import Change, spans_s

ADAPTIVE, EDGE_ONLY = "adaptive", "edge-only"
BLOCK_S = 5.0
AS_GOOD = 1.05
IN_A_ROW = 3
STATIC_LIMIT, CLAIRVOYANT_LIMIT, SETTLED_LIMIT = 0.8, 1.15, 2


@dataclass(frozen=True, slots=True)
class Segment:
    """A time with one rate, bits per second, in seconds from the start."""

    start_s: float
    end_s: float
    rate_bps: float


def segments_of(trace: Sequence[Change]) -> tuple[Segment, ...]:
    """The segments of a trace, its first line at zero."""
    first_s = trace[0].at_s
    return tuple(
        Segment(change.at_s - first_s, change.at_s - first_s + span_s, change.rate_bps)
        for change, span_s in zip(trace, spans_s(trace), strict=True)
    )


@dataclass(frozen=True, slots=True)
class Run:
    """One arm's replay.

    Args:
        name: of the arm: its plan's, or `adaptive`.
        flow: its requests.
        log: what its agent logged.
    """

    name: str
    flow: Flow
    log: tuple[Mapping[str, Any], ...] = ()

    @property
    def latencies_s(self) -> list[float]:
        """Of every request; one that was lost counts as long as it was waited for."""
        return [ANSWER_S if one.latency_s is None else one.latency_s for one in self.flow.asked]

    def within(self, segment: Segment) -> slice:
        """Which requests were due in a segment."""
        due = [one.due_s + 1e-9 for one in self.flow.asked]
        return slice(*np.searchsorted(due, [segment.start_s, segment.end_s]).tolist())

    def rows(self) -> list[list[Any]]:
        """Every request: due_s, latency_s, the plan, who answered, whether it fell back."""
        return [
            [
                round(one.due_s, 4), None if one.latency_s is None else round(one.latency_s, 5),
                one.plan or self.name, one.answered_by, one.fallback is not None,
            ]
            for one in self.flow.asked
        ]  # fmt: skip


def figures(runs: Sequence[Run], segments: Sequence[Segment], seed: int = 0) -> dict[str, Any]:
    """The result of a replay.

    The clairvoyant takes in each segment the fixed plan (or the edge alone) with the lowest total
    there. `ideal` is stricter: in each segment every request takes the median of the fixed plan
    whose median is lowest there, so that no plan carries a queue from one segment into the next.

    Raises:
        MeasurementError: no adaptive arm, or none beside it.
    """
    adaptive = next((one for one in runs if one.name == ADAPTIVE), None)
    statics = [one for one in runs if one is not adaptive]
    if adaptive is None or not statics:
        raise MeasurementError("a replay needs the adaptive agent and a fixed plan")
    best = min(statics, key=lambda one: sum(one.latencies_s))
    knowing = clairvoyant(statics, segments)
    block = max(1, round(BLOCK_S / max(1e-9, adaptive.flow.asked[1].due_s)))
    mine = adaptive.latencies_s
    ratios = {
        name: dict(zip(("ratio", "low", "high"), interval, strict=True))
        for name, interval in (
            ("to_best_static", total_ratio_interval(mine, best.latencies_s, block, seed)),
            ("to_clairvoyant", total_ratio_interval(mine, knowing[1], block, seed)),
        )
    }
    steps = settling(adaptive, statics, segments)
    result = {
        "segments": [
            {"start_s": one.start_s, "end_s": one.end_s, "rate_bps": one.rate_bps}
            for one in segments
        ],
        "arms": [arm_figures(one, segments) for one in runs],
        "best_static": best.name,
        "clairvoyant": {"plans": knowing[0], "total_s": sum(knowing[1])},
        "ideal": ideal(statics, segments, sum(mine)),
        **ratios,
        "steps": steps,
        "agent": _told(adaptive),
    }
    return result | {"targets": targets(result)}


def clairvoyant(
    statics: Sequence[Run], segments: Sequence[Segment]
) -> tuple[list[str], list[float]]:
    """The best fixed plan of each segment by name, and the latency of every request by these."""
    names, latencies = [], []
    for segment in segments:
        parts = {one.name: one.latencies_s[one.within(segment)] for one in statics}
        name = min(parts, key=lambda name: sum(parts[name]))
        names.append(name)
        latencies += parts[name]
    return names, latencies


def ideal(statics: Sequence[Run], segments: Sequence[Segment], total_s: float) -> dict[str, Any]:
    """The stricter bound, and what the adaptive agent's total is over it."""
    names, bound_s = [], 0.0
    for segment in segments:
        name, middle_s = min(medians(statics, segment).items(), key=lambda item: item[1])
        spread = statics[0].within(segment)
        names.append(name)
        bound_s += middle_s * (spread.stop - spread.start)
    return {"plans": names, "total_s": bound_s, "ratio": total_s / bound_s}


def medians(runs: Sequence[Run], segment: Segment) -> dict[str, float]:
    """Median latency of each run in a segment: a queue that drains in half of it does not show."""
    return {one.name: median(one.latencies_s[one.within(segment)]) for one in runs}


def settling(
    adaptive: Run, statics: Sequence[Run], segments: Sequence[Segment]
) -> list[dict[str, Any]]:
    """After each step, how many requests the adaptive agent took to answer by a good plan.

    Good is the plan with the lowest median in the segment, and one within 5 % of it. Settled is the
    agent at the first of three requests in a row that were due after the step and were answered by
    good plans, without falling back.
    """
    steps = []
    for segment in segments[1:]:
        by_name = medians(statics, segment)
        lowest_s = min(by_name.values())
        good = {name for name, middle_s in by_name.items() if middle_s <= AS_GOOD * lowest_s}
        asked = adaptive.flow.asked[adaptive.within(segment)]
        steps.append(
            {
                "at_s": segment.start_s,
                "rate_bps": segment.rate_bps,
                "good": sorted(good),
                "requests": _settled(asked, good),
            }
        )
    return steps


def _settled(asked: Sequence[Asked], good: set[str]) -> int | None:
    fits = [one.plan in good and one.fallback is None for one in asked]
    for number in range(len(fits) - IN_A_ROW + 1):
        if all(fits[number : number + IN_A_ROW]):
            return number
    return None


def arm_figures(run: Run, segments: Sequence[Segment]) -> dict[str, Any]:
    """Figures of one arm."""
    latencies, asked = run.latencies_s, run.flow.asked
    return {
        "name": run.name,
        "requests": len(asked),
        "lost": sum(one.latency_s is None for one in asked),
        "fallbacks": sum(one.fallback is not None for one in asked),
        "total_s": sum(latencies),
        "p50_s": median(latencies),
        "p95_s": p95(latencies),
        "worst_s": max(latencies),
        "by_segment": [
            {"mean_s": float(np.mean(part)), "median_s": median(part)}
            for part in (latencies[run.within(segment)] for segment in segments)
        ],
        "busy_s": median([one.busy_s for one in asked]),
        "asked_late_s": run.flow.latest_s,
    }


def _told(adaptive: Run) -> dict[str, Any]:
    """What the adaptive agent says of itself."""
    totals = [line for line in adaptive.log if line.get("message") == "plans in total"]
    known = ("requests", "switches", "probes", "trials", "overdue")
    return {name: totals[-1].get(name) for name in known} if totals else {}


def targets(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was asked for, what was seen, and whether it suffices."""
    lost = sum(arm["lost"] for arm in result["arms"] if arm["name"] == ADAPTIVE)
    slowest = max(
        (math.inf if one["requests"] is None else one["requests"] for one in result["steps"]),
        default=0,
    )
    seen = (
        ("requests lost", lost, 0),
        ("total over the best static plan's", result["to_best_static"]["ratio"], STATIC_LIMIT),
        ("total over the clairvoyant's", result["to_clairvoyant"]["ratio"], CLAIRVOYANT_LIMIT),
        ("requests to settle after a step", slowest, SETTLED_LIMIT),
    )
    return [
        {
            "what": what,
            "seen": None if math.isinf(value) else value,
            "limit": limit,
            "is_met": value <= limit,
        }
        for what, value, limit in seen
    ]
