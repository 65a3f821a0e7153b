"""What is learned from durations alone: link, load, and how wrong a profile is."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.estimate import Level, LinkEstimate, SideLoad, Transfer, weighted_median
from splitserve.plans import Link

RTT_S = 0.02
SMALL, LARGE = 4_000, 20_000


def seconds(size: float, bps: float, rtt_s: float = RTT_S) -> float:
    return rtt_s + 8 * size / bps


def observe(
    estimate: LinkEstimate, sizes: Sequence[float], bps: float, rtt_s: float = RTT_S
) -> None:
    for size in sizes:
        estimate.observe(Transfer(0.0, size, seconds(size, bps, rtt_s)))


def at(bps: float = 5e6, rtt_s: float = RTT_S) -> LinkEstimate:
    return LinkEstimate(Link(uplink_bps=bps, rtt_s=rtt_s))


def test_the_estimate_starts_from_the_expected_link() -> None:
    estimate = at(3e6, 0.07)
    assert estimate.uplink_bps == pytest.approx(3e6)
    assert estimate.rtt_s == 0.07
    assert estimate.transfer_s(3_000) == pytest.approx(seconds(3_000, 3e6, 0.07))


@pytest.mark.parametrize("bps", [0.25e6, 1.1e6, 5.85e6, 100e6])
@pytest.mark.parametrize("rtt_s", [0.005, 0.05, 0.3])
def test_two_sizes_tell_round_trip_and_rate(bps: float, rtt_s: float) -> None:
    estimate = at()
    observe(estimate, [SMALL, LARGE] * 4, bps, rtt_s)
    assert estimate.uplink_bps == pytest.approx(bps, rel=1e-6)
    assert estimate.rtt_s == pytest.approx(rtt_s, rel=1e-6)
    assert estimate.one_size() is None


def test_noise_is_averaged_out() -> None:
    generator, estimate = random.Random(3), at(20e6)
    for number in range(20):
        size = (SMALL, LARGE)[number % 2]
        took_s = seconds(size, 2e6) * generator.gauss(1, 0.1)
        estimate.observe(Transfer(0.2 * number, size, took_s))
    assert estimate.transfer_s(SMALL) == pytest.approx(seconds(SMALL, 2e6), rel=0.1)
    assert estimate.transfer_s(LARGE) == pytest.approx(seconds(LARGE, 2e6), rel=0.1)


@pytest.mark.parametrize("bps", [0.5e6, 1e6, 20e6])
def test_with_one_size_the_round_trip_stays_and_the_rate_takes_the_change(bps: float) -> None:
    estimate = at(5e6)
    observe(estimate, [LARGE] * 5, bps)
    assert estimate.rtt_s == RTT_S
    assert estimate.uplink_bps == pytest.approx(bps, rel=0.01)
    assert estimate.one_size() == (LARGE, LARGE)


def test_with_one_size_a_change_under_a_tenth_changes_nothing() -> None:
    estimate = at(5e6)
    for _ in range(20):
        estimate.observe(Transfer(0.0, LARGE, 1.08 * seconds(LARGE, 5e6)))
    assert estimate.uplink_bps == pytest.approx(5e6)
    assert estimate.rtt_s == RTT_S


def test_a_transfer_shorter_than_the_round_trip_shortens_the_round_trip() -> None:
    estimate = at(5e6, 0.1)
    observe(estimate, [SMALL] * 5, 20e6, 0.01)
    assert estimate.rtt_s == pytest.approx(seconds(SMALL, 20e6, 0.01))
    assert estimate.transfer_s(SMALL) == pytest.approx(seconds(SMALL, 20e6, 0.01), rel=0.02)


@pytest.mark.parametrize("after", [0.5e6, 50e6])
def test_a_step_is_believed_after_one_transfer_and_settled_after_two(after: float) -> None:
    estimate = at(5e6)
    observe(estimate, [LARGE] * 20, 5e6)
    observe(estimate, [LARGE], after)
    assert estimate.is_doubtful
    assert estimate.transfer_s(LARGE) == pytest.approx(seconds(LARGE, after))
    observe(estimate, [LARGE], after)
    assert not estimate.is_doubtful
    observe(estimate, [LARGE], after)
    assert estimate.transfer_s(LARGE) == pytest.approx(seconds(LARGE, after))


@pytest.mark.parametrize("took_s", [0.0, 1e-6, 0.5, 60.0])
def test_one_outlier_is_forgotten_with_the_next_transfer(took_s: float) -> None:
    estimate = at(5e6)
    observe(estimate, [SMALL, LARGE] * 10, 5e6)
    before = (estimate.rtt_s, estimate.byte_s)
    estimate.observe(Transfer(0.0, LARGE, took_s))
    observe(estimate, [LARGE], 5e6)
    assert (estimate.rtt_s, estimate.byte_s) == pytest.approx(before)


def test_another_size_that_fits_no_step_tells_the_round_trip_was_meant() -> None:
    """Twenty transfers of one size were put down to the rate; one of another size says more."""
    estimate = at(20e6)
    observe(estimate, [SMALL] * 20, 20e6, 0.12)
    assert estimate.uplink_bps < 0.4e6
    observe(estimate, [LARGE], 20e6, 0.12)
    assert estimate.uplink_bps == pytest.approx(20e6, rel=0.01)
    assert estimate.rtt_s == pytest.approx(0.12, rel=0.01)


def test_old_transfers_are_forgotten() -> None:
    estimate = at(5e6)
    observe(estimate, [SMALL] * 10, 5e6)
    estimate.observe(Transfer(1000.0, LARGE, seconds(LARGE, 5e6)))
    assert estimate.one_size() == (LARGE, LARGE)


@given(
    st.lists(
        st.tuples(
            st.floats(allow_nan=True, allow_infinity=True), st.floats(allow_nan=True), st.floats()
        ),
        max_size=30,
    )
)
def test_nothing_that_is_observed_makes_nonsense(values: list[tuple[float, float, float]]) -> None:
    estimate = at()
    for number, (size, took_s, _) in enumerate(values):
        estimate.observe(Transfer(number, size, took_s))
    assert 0 <= estimate.rtt_s < float("inf")
    assert 0 < estimate.byte_s < float("inf")


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(1, 9)), min_size=1, max_size=12))
def test_weighted_median_is_the_median_of_so_many_copies(pairs: list[tuple[float, int]]) -> None:
    values, weights = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    copies = sorted(value for value, count in pairs for _ in range(count))
    half = len(copies) / 2
    lower, upper = copies[int(half - 0.5)], copies[int(half)]
    assert lower <= weighted_median(values, weights) <= upper


def test_a_level_is_a_median_that_jumps_when_a_jump_is_confirmed() -> None:
    level = Level(1.0)
    for value in (1.0, 1.1, 0.9, 1.05, 1.0):
        level.observe(value)
    assert level.value == pytest.approx(1.0, abs=0.06)
    level.observe(5.0)
    assert level.value == 5.0
    level.observe(1.0)
    assert level.value == pytest.approx(1.0, abs=0.06)
    level.observe(5.0)
    level.observe(5.2)
    assert level.value == pytest.approx(5.1)
    level.observe(float("nan"))
    assert level.value == pytest.approx(5.1)


def test_load_is_measured_over_profiled_time_for_all_options() -> None:
    side = SideLoad([0.1, 0.2, 0.0])
    for _ in range(5):
        side.observe(0, 0.3)
    assert side.factor == pytest.approx(3)
    assert list(side.seconds) == pytest.approx([0.3, 0.6, 0.0])


def test_a_wrong_profile_is_told_from_load_by_the_change_of_plan() -> None:
    side = SideLoad([0.1, 0.2])
    for _ in range(10):
        side.observe(0, 0.1)
    for _ in range(10):
        side.observe(1, 0.28)  # 1.4 times its profile
    assert side.factor == pytest.approx(1)
    assert list(side.seconds) == pytest.approx([0.1, 0.28])
    for _ in range(10):
        side.observe(1, 0.56)  # and now the machine is twice as slow
    assert side.factor == pytest.approx(2)
    assert list(side.seconds) == pytest.approx([0.2, 0.56])


def test_a_request_in_passing_says_nothing_of_its_profile() -> None:
    side = SideLoad([0.1, 0.2])
    for _ in range(10):
        side.observe(0, 0.1)
    side.observe(1, 0.28, is_passing=True)
    side.observe(0, 0.1)
    assert list(side.seconds) == pytest.approx([0.1, 0.2])
