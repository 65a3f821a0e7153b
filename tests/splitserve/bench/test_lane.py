"""Bytes under way feel every change of the rate, against a clock that only the test turns."""

import math

from hypothesis import given
from hypothesis import strategies as st

from splitserve.bench.lane import Lane

MEGABIT = 1e6
SECOND_BYTES = 125_000  # at 1 Mbit/s


def test_bytes_come_out_in_turn():
    lane = Lane(100.0, MEGABIT)
    first, second = lane.take(100.0, SECOND_BYTES), lane.take(100.5, SECOND_BYTES)
    assert (lane.out_s(first), lane.out_s(second)) == (101.0, 102.0)
    assert lane.out_s(lane.take(110.0, SECOND_BYTES)) == 111.0


def test_a_change_of_rate_holds_for_what_is_under_way():
    lane = Lane(0.0, MEGABIT)
    place = lane.take(0.0, 2 * SECOND_BYTES)
    assert lane.out_s(place) == 2.0
    lane.set_rate(1.0, 4 * MEGABIT)
    assert lane.out_s(place) == 1.25
    lane.set_rate(1.125, MEGABIT)
    assert lane.out_s(place) == 1.625


def test_at_rate_zero_nothing_passes_and_afterwards_at_the_new_rate():
    lane = Lane(0.0, MEGABIT)
    before, during = lane.take(0.0, 2 * SECOND_BYTES), None
    lane.set_rate(1.0, 0.0)
    during = lane.take(5.0, SECOND_BYTES)
    assert lane.out_s(before) == lane.out_s(during) == math.inf
    lane.set_rate(31.0, 2 * MEGABIT)
    assert (lane.out_s(before), lane.out_s(during)) == (31.5, 32.0)


def test_what_came_out_before_a_change_stays_out():
    lane = Lane(0.0, MEGABIT)
    place = lane.take(0.0, SECOND_BYTES)
    lane.set_rate(3.0, 0.0)
    assert lane.out_s(place) == 1.0


def test_without_a_limit_bytes_come_out_at_once():
    lane = Lane(0.0, None)
    assert lane.out_s(lane.take(7.0, SECOND_BYTES)) == 7.0
    lane.set_rate(8.0, MEGABIT)
    slow = lane.take(8.0, 10 * SECOND_BYTES)
    assert lane.out_s(slow) == 18.0
    lane.set_rate(9.0, None)
    assert lane.out_s(slow) == 9.0


STEPS = st.lists(st.tuples(st.floats(0.1, 5), st.floats(0, 10 * MEGABIT)), min_size=1, max_size=6)


@given(STEPS, st.lists(st.tuples(st.floats(0, 20), st.integers(0, 10**6)), min_size=1, max_size=6))
def test_no_more_bits_come_out_than_the_rates_allow_and_the_order_is_kept(steps, sizes):
    lane, now_s, places, ends = Lane(0.0, MEGABIT), 0.0, [], [(0.0, MEGABIT)]
    for seconds, rate_bps in steps:
        now_s += seconds
        ends.append((now_s, rate_bps))
    events = sorted(
        [(at, "rate", rate) for at, rate in ends[1:]] + [(a, "bytes", s) for a, s in sizes]
    )
    for at_s, kind, value in events:
        if kind == "rate":
            lane.set_rate(at_s, value)
        else:
            places.append((at_s, value, lane.take(at_s, value)))
    outs = [lane.out_s(place) for _, _, place in places]
    assert outs == sorted(outs)
    for (at_s, size, _), out_s in zip(places, outs, strict=True):
        assert out_s >= at_s
        if out_s < math.inf:
            assert capacity(ends, at_s, out_s) >= 8 * size * (1 - 1e-9) - 1e-3


def capacity(ends, from_s, to_s):
    """Bits that pass between two moments."""
    bounds = [*(at for at, _ in ends[1:]), math.inf]
    return sum(
        rate * max(0.0, min(to_s, end) - max(from_s, at))
        for (at, rate), end in zip(ends, bounds, strict=True)
    )
