"""Unmeasured cuts: the isotonic fit, and how far it is off."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitserve.profile.predict import (
    interpolate,
    isotonic,
    leave_one_out,
    predict_heads,
    predict_tails,
)

values = st.lists(st.floats(0, 10), min_size=1, max_size=12)


@given(values)
def test_the_fit_never_falls_keeps_the_mean_and_keeps_what_is_in_order(times: list[float]):
    fitted = isotonic(times, [1.0] * len(times))
    assert np.all(np.diff(fitted) >= -1e-12)
    assert np.mean(fitted) == pytest.approx(np.mean(times), abs=1e-9)
    assert isotonic(sorted(times), [1.0] * len(times)) == pytest.approx(sorted(times))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_no_other_sequence_that_never_falls_is_nearer(times: list[int]):
    fitted = isotonic([float(t) for t in times], [1.0] * len(times))
    error = sum((a - b) ** 2 for a, b in zip(fitted, times, strict=True))
    grid = np.linspace(0, 4, 9)
    best = dict.fromkeys(grid, 0.0)
    for time in times:
        costs, lowest = {}, np.inf
        for level in grid:
            lowest = min(lowest, best[level])
            costs[level] = lowest + (level - time) ** 2
        best = costs
    assert error <= min(best.values()) + 1e-9


def test_between_measured_shares_the_line_is_straight():
    assert interpolate([0, 0.5, 1], [0, 2, 6], [0.25, 0.75, 1]) == pytest.approx([1, 4, 6])
    assert interpolate([1, 0, 0.5, 0.5], [6, 0, 1, 3], [0.5]) == pytest.approx([2])


def test_what_was_measured_stays_and_tails_shrink():
    shares = [0, 0.25, 0.5, 0.75, 1]
    assert predict_heads(shares, [0, None, 3, None, 4]) == pytest.approx([0, 1.5, 3, 3.5, 4])
    assert predict_tails(shares, [4, None, 1, None, 0]) == pytest.approx([4, 2.5, 1, 0.5, 0])


def test_leaving_one_out_tells_the_error():
    shares = [0, 0.25, 0.5, 1]
    exact = leave_one_out(shares, [0, 1, 2, 4], [4, 3, 2, 0])
    assert exact is not None
    assert exact.cuts == 2
    assert max(exact.head_worst, exact.tail_worst) == pytest.approx(0, abs=1e-12)
    off = leave_one_out(shares, [0, 2, 2, 4], [4, 3, 2, 0])
    assert off is not None
    # 0.25 from (0, 0) and (0.5, 2): 1 where 2 was; 0.5 from (0.25, 2) and (1, 4): 2.67 where 2 was.
    assert off.head_worst == pytest.approx(0.5)
    assert off.head_median == pytest.approx((0.5 + 1 / 3) / 2)


def test_one_measured_cut_tells_no_error():
    assert leave_one_out([0, 0.5, 0.7, 1], [0, 1, None, 2], [2, 1, None, 0]) is None
