"""Links that change: expectation and p95 by hand, and traces."""

import math

import pytest
from planned import EDGE, JPEG, SPLIT

from splitserve.errors import UsageError
from splitserve.plan.sampled import State, forecast, states_of, typical_bps
from splitserve.plan.trace import Change
from splitserve.plans import Link, latency_s

OPTIONS = [one.option for one in (EDGE, JPEG, SPLIT)]


def test_expectation_and_p95_are_over_the_time():
    states = states_of([Change(0, 20e6), Change(30, 1e6), Change(40, 5e6)])
    assert states == [State(30, 20e6), State(10, 1e6), State(10, 5e6)]
    found = forecast(OPTIONS, states, 0.01)
    by_name = {one.name: one for one in found.outlooks}
    times = [latency_s(JPEG.option, Link(uplink_bps=s.uplink_bps, rtt_s=0.01)) for s in states]
    assert by_name["cloud jpeg"].mean_s == pytest.approx(
        0.6 * times[0] + 0.2 * times[1] + 0.2 * times[2]
    )
    assert by_name["cloud jpeg"].p95_s == max(times)
    assert by_name["edge-only"].mean_s == pytest.approx(EDGE.option.edge_s)
    assert by_name["edge-only"].p95_s == EDGE.option.edge_s
    assert found.best_mean.mean_s == min(one.mean_s for one in found.outlooks)
    assert found.best_p95.p95_s == min(one.p95_s for one in found.outlooks)
    assert found.switching_mean_s <= found.best_mean.mean_s


def test_the_best_in_expectation_may_not_be_the_best_in_p95():
    states = [State(1, 50e6)] * 9 + [State(1, 0.2e6)]
    found = forecast(OPTIONS, states, 0.01)
    assert found.best_mean.name == "split"
    assert found.best_p95.name == "edge-only"


def test_nothing_arrives_while_nothing_passes():
    found = forecast(OPTIONS, [State(1, 0.0), State(99, 5e6)], 0.01)
    by_name = {one.name: one for one in found.outlooks}
    assert math.isinf(by_name["split"].mean_s)
    assert math.isfinite(by_name["split"].p95_s)
    assert found.best_mean.name == "edge-only"
    assert math.isfinite(found.switching_mean_s)


def test_a_trace_of_one_line_is_one_state():
    assert states_of([Change(0, 1e6)]) == [State(1.0, 1e6)]


def test_the_typical_rate_is_the_median_of_what_passes():
    states = [State(1, 0.0), State(1, 1e6), State(5, 3e6), State(1, 9e6)]
    assert typical_bps(states) == 3e6
    with pytest.raises(UsageError, match="lets nothing pass"):
        typical_bps([State(1, 0.0)])
