"""The bound in closed form against a numeric sweep."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from splitserve.plan.bound import (
    Setup,
    best_rate_bps,
    can_win,
    floor_s,
    ideal_split_s,
    max_gain,
)
from splitserve.plans import Link

UPLOAD = 15_300.0

shares = st.floats(0.01, 0.99)
rhos = st.floats(0.01, 1.5)
setups = st.builds(
    Setup,
    before_s=st.sampled_from([0.0, 0.002, 0.03]),
    edge_s=st.floats(0.02, 2.0),
    cloud_s=st.floats(0.001, 0.1),
)


def gain_at(setup: Setup, rtt_s: float, share: float, rho: float, rate_bps: float) -> float:
    link = Link(uplink_bps=rate_bps, rtt_s=rtt_s)
    edge_s = setup.before_s + setup.edge_s
    cloud_s = setup.before_s + setup.cloud_s + rtt_s + 8 * UPLOAD / rate_bps
    return min(edge_s, cloud_s) / ideal_split_s(setup, link, share, rho * UPLOAD)


@given(setups, st.sampled_from([0.0, 0.004, 0.02, 0.1]), shares, rhos)
def test_the_closed_form_is_what_a_sweep_over_bandwidths_finds(
    setup: Setup, rtt_s: float, share: float, rho: float
):
    assume(setup.saved_s - rtt_s > 1e-3)
    best = best_rate_bps(setup, rtt_s, UPLOAD)
    assert best is not None
    rates = best * np.logspace(-3, 3, 601)  # the middle one is B*
    found = [gain_at(setup, rtt_s, share, rho, float(rate)) for rate in rates]
    want = max_gain(setup, rtt_s, share, rho)
    assert gain_at(setup, rtt_s, share, rho, best) == pytest.approx(want, rel=1e-9)
    assume(abs(want - 1) > 1e-6)
    assert can_win(setup, rtt_s, share, rho) == (max(found) > 1)
    if want > 1:
        assert max(found) == pytest.approx(want, rel=1e-9)
        assert rates[int(np.argmax(found))] == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize(
    ("share", "rho", "ratio", "want"),
    [
        (0.144, 6.7 / 15.3, 4, 1.46), (0.144, 6.7 / 15.3, 16, 1.64), (0.03, 6.7 / 15.3, 4, 1.66),
        (0.03, 6.7 / 15.3, 16, 2.00), (0.03, 3.8 / 11.9, 4, 1.95), (0.03, 3.8 / 11.9, 16, 2.56),
        (0.40, 3.6 / 19, 4, 1.44), (0.40, 3.6 / 19, 16, 1.62),
    ],
)  # fmt: skip
def test_the_published_cases_come_out(share: float, rho: float, ratio: float, want: float):
    """The table of section 1.3 of the research notes, R = 0."""
    setup = Setup(before_s=0.0, edge_s=0.03 * ratio, cloud_s=0.03)
    assert max_gain(setup, 0.0, share, rho) == pytest.approx(want, abs=0.01)
    assert setup.ratio == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("share", "ratio", "want"),
    [(0.144, 4, 1.28), (0.144, 16, 1.58), (0.03, 4, 1.44), (0.03, 16, 1.91)],
)
def test_a_round_trip_lowers_them(share: float, ratio: float, want: float):
    setup = Setup(before_s=0.0, edge_s=0.03 * ratio, cloud_s=0.03)
    assert max_gain(setup, 0.02, share, 6.7 / 15.3) == pytest.approx(want, abs=0.01)


def test_a_net_without_a_bottleneck_cannot_win():
    setup = Setup(before_s=0.0, edge_s=0.48, cloud_s=0.03)
    assert not can_win(setup, 0.0, 0.54, 1.39)
    assert max_gain(setup, 0.0, 0.54, 1.39) < 1


def test_a_device_faster_than_the_cloud_has_no_best_rate():
    setup = Setup(before_s=0.0, edge_s=0.02, cloud_s=0.03)
    assert best_rate_bps(setup, 0.0, UPLOAD) is None
    assert not can_win(setup, 0.0, 0.1, 0.1)
    assert Setup(before_s=0.0, edge_s=0.02, cloud_s=0.0).ratio == float("inf")


@given(setups, shares, rhos, st.floats(4, 9))
def test_no_split_comes_below_the_floor(setup: Setup, share: float, rho: float, power: float):
    link = Link(uplink_bps=10**power, rtt_s=0.01)
    assert ideal_split_s(setup, link, share, rho * UPLOAD) >= floor_s(setup, 0.01) - 1e-12
