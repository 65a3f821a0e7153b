"""The breaker against a clock that a test turns."""

import random

import pytest

from edge_agent.fallback import FIRST_PAUSE_S, JITTER, LONGEST_PAUSE_S, LONGEST_REQUESTED_S, Breaker


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Middle(random.Random):
    """No jitter."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(clock, Middle())


def pause_s(breaker: Breaker, clock: Clock) -> float:
    """Seconds until the next probe; the probe is then under way."""
    started = clock.now_s
    while not breaker.allows():
        clock.now_s += 0.001
        assert clock.now_s < started + 1000
    return clock.now_s - started


def test_a_closed_breaker_lets_everything_through(breaker: Breaker) -> None:
    assert not breaker.is_open
    assert all(breaker.allows() for _ in range(10))
    breaker.succeeded()
    assert not breaker.is_open


def test_a_failure_opens_it_for_the_first_pause(breaker: Breaker, clock: Clock) -> None:
    breaker.failed()
    assert breaker.is_open
    assert not breaker.allows()
    assert pause_s(breaker, clock) == pytest.approx(FIRST_PAUSE_S, abs=0.01)


def test_one_probe_at_a_time(breaker: Breaker, clock: Clock) -> None:
    breaker.failed()
    clock.now_s += FIRST_PAUSE_S
    assert breaker.allows()
    assert not any(breaker.allows() for _ in range(10))
    clock.now_s += 1000
    assert not breaker.allows()


def test_a_probe_that_succeeds_closes_it(breaker: Breaker, clock: Clock) -> None:
    breaker.failed()
    pause_s(breaker, clock)
    breaker.succeeded()
    assert not breaker.is_open
    assert all(breaker.allows() for _ in range(3))
    breaker.failed()
    assert pause_s(breaker, clock) == pytest.approx(FIRST_PAUSE_S, abs=0.01)


def test_the_pause_doubles_with_every_failed_probe_up_to_the_limit(
    breaker: Breaker, clock: Clock
) -> None:
    pauses = []
    for _ in range(8):
        breaker.failed()
        pauses.append(pause_s(breaker, clock))
    wanted = [min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**power) for power in range(8)]
    assert pauses == pytest.approx(wanted, abs=0.01)


def test_a_probe_that_met_silence_has_waited_already(breaker: Breaker, clock: Clock) -> None:
    for _ in range(6):
        breaker.failed()
        pause_s(breaker, clock)
        clock.now_s += LONGEST_PAUSE_S
    breaker.failed()
    assert pause_s(breaker, clock) == pytest.approx(FIRST_PAUSE_S, abs=0.01)
    breaker.failed()
    assert pause_s(breaker, clock) == pytest.approx(LONGEST_PAUSE_S, abs=0.01)


def test_jitter_stays_within_its_bounds_and_spreads(clock: Clock) -> None:
    pauses = []
    for seed in range(200):
        breaker = Breaker(clock, random.Random(seed))
        breaker.failed()
        pauses.append(pause_s(breaker, clock))
    assert min(pauses) >= FIRST_PAUSE_S * (1 - JITTER) - 0.002
    assert max(pauses) <= FIRST_PAUSE_S * (1 + JITTER) + 0.002
    assert max(pauses) - min(pauses) > FIRST_PAUSE_S * JITTER


def test_a_pause_the_cloud_asks_for_is_kept(breaker: Breaker, clock: Clock) -> None:
    breaker.failed(at_least_s=30.0)
    assert pause_s(breaker, clock) == pytest.approx(30.0, abs=0.01)


def test_a_pause_of_weeks_is_cut_short(breaker: Breaker, clock: Clock) -> None:
    breaker.failed(at_least_s=4e6)
    clock.now_s += 1.3 * LONGEST_REQUESTED_S
    assert breaker.allows()


def test_a_shorter_wish_changes_nothing(breaker: Breaker, clock: Clock) -> None:
    breaker.failed(at_least_s=0.1)
    assert pause_s(breaker, clock) == pytest.approx(FIRST_PAUSE_S, abs=0.01)


def test_jitter_never_undercuts_a_pause_the_cloud_asks_for(clock: Clock) -> None:
    for seed in range(50):
        breaker = Breaker(clock, random.Random(seed))
        breaker.failed(at_least_s=30.0)
        assert pause_s(breaker, clock) >= 30.0 - 0.002


def test_failures_already_under_way_count_once(breaker: Breaker, clock: Clock) -> None:
    for _ in range(20):
        breaker.failed()
    assert pause_s(breaker, clock) == pytest.approx(FIRST_PAUSE_S, abs=0.01)
    breaker.failed()
    breaker.failed()
    assert pause_s(breaker, clock) == pytest.approx(2 * FIRST_PAUSE_S, abs=0.01)


def test_an_answer_that_was_under_way_closes_it(breaker: Breaker) -> None:
    breaker.failed()
    breaker.succeeded()
    assert breaker.allows()
