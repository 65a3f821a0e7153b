"""Plans over many link states instead of one: best in expectation, best in p95."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from splitserve.errors import UsageError
from splitserve.plan.trace import Change, spans_s
from splitserve.plans import Link, PlanOption, latency_s

TAIL = 0.95


@dataclass(frozen=True, slots=True)
class State:
    """A state of the link.

    Args:
        weight: its share of the time, or of the samples; any scale.
        uplink_bps: 0 while nothing passes.
    """

    weight: float
    uplink_bps: float


@dataclass(frozen=True, slots=True)
class Outlook:
    """One plan over all states.

    Args:
        name: of the plan.
        mean_s: expected latency; infinite where some state lets nothing pass.
        p95_s: latency that 95 % of the time is not passed.
    """

    name: str
    mean_s: float
    p95_s: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """All plans over all states.

    Args:
        states: of the link.
        outlooks: of every plan, the best in expectation first.
        best_mean: the best in expectation.
        best_p95: the best in p95.
        switching_mean_s: expected latency of taking the fastest plan in every state.
        switching_p95_s: p95 of the same.
    """

    states: tuple[State, ...]
    outlooks: tuple[Outlook, ...]
    best_mean: Outlook
    best_p95: Outlook
    switching_mean_s: float
    switching_p95_s: float


def states_of(changes: Sequence[Change]) -> list[State]:
    """Turn a trace into states, each weighing as many seconds as it lasts."""
    return [
        State(span_s, change.rate_bps)
        for span_s, change in zip(spans_s(changes), changes, strict=True)
    ]


def forecast(options: Sequence[PlanOption], states: Sequence[State], rtt_s: float) -> Forecast:
    """Compare plans over link states; a request meets one state from beginning to end.

    Args:
        options: feasible ones, at least one.
        states: at least one.
        rtt_s: of the link.
    """
    total = sum(state.weight for state in states)
    weights = [state.weight / total for state in states]
    times = {
        option.name: [_latency_s(option, state, rtt_s) for state in states] for option in options
    }
    outlooks = sorted(
        (_outlook(name, values, weights) for name, values in times.items()),
        key=lambda one: (one.mean_s, one.p95_s),
    )
    best = [min(values) for values in zip(*times.values(), strict=True)]
    switching = _outlook("", best, weights)
    return Forecast(
        states=tuple(states),
        outlooks=tuple(outlooks),
        best_mean=outlooks[0],
        best_p95=min(outlooks, key=lambda one: (one.p95_s, one.mean_s)),
        switching_mean_s=switching.mean_s,
        switching_p95_s=switching.p95_s,
    )


def typical_bps(states: Sequence[State]) -> float:
    """The weighted median of the rates that let something pass.

    Raises:
        UsageError: no state does.
    """
    passing = [state for state in states if state.uplink_bps > 0]
    if not passing:
        raise UsageError("the trace lets nothing pass; name a rate with --uplink")
    rates = [state.uplink_bps for state in passing]
    return _quantile(rates, [state.weight for state in passing], 0.5)


def _latency_s(option: PlanOption, state: State, rtt_s: float) -> float:
    if option.is_local:
        return option.edge_s
    if state.uplink_bps == 0:
        return math.inf
    return latency_s(option, Link(uplink_bps=state.uplink_bps, rtt_s=rtt_s))


def _outlook(name: str, values: Sequence[float], weights: Sequence[float]) -> Outlook:
    mean_s = sum(value * weight for value, weight in zip(values, weights, strict=True))
    return Outlook(name, mean_s, _quantile(values, weights, TAIL))


def _quantile(values: Sequence[float], weights: Sequence[float], level: float) -> float:
    """The smallest value that at least this share of the weight does not pass."""
    order = sorted(zip(values, weights, strict=True))
    wanted = level * sum(weights) * (1 - 1e-12)
    passed = 0.0
    for value, weight in order:
        passed += weight
        if passed >= wanted:
            return value
    return order[-1][0]
