"""How much a tail feels: measured on tails whose answer is known."""

import numpy as np
import pytest
from features import correlated
from hypothesis import given
from hypothesis import strategies as st

from splitserve.calibrate.fit import Weights, plain_tables
from splitserve.calibrate.sensitivity import (
    BAND_GROUPS,
    CHANNEL_GROUPS,
    CHANNEL_POWER,
    CHANNELS_ALONE,
    LARGEST_WEIGHT,
    balance,
    count_groups,
    group_bands,
    group_channels,
    measure_weights,
)
from splitserve.tensors import Array

FEATURES = correlated((24, 5, 8, 8))
PLAIN = plain_tables(FEATURES, 1)


def measure(felt: Array, features: Array = FEATURES) -> tuple[Weights, float]:
    """Weights for a tail that sums `felt` times the squared change."""
    plain = plain_tables(features, 1)

    def divergence(index: int, moved: Array) -> float:
        return float((felt * np.square(moved - features[index : index + 1], dtype=float)).sum())

    return measure_weights(
        list(features[:, None]), plain, divergence, np.random.default_rng(0), lambda: None
    )


def test_a_tail_that_feels_everything_alike_gets_even_weights():
    weights, felt = measure(np.ones((1, 5, 8, 8)))
    np.testing.assert_allclose(weights.gain, 1, atol=0.01)
    np.testing.assert_allclose(weights.bands, 1, atol=0.01)
    assert felt == pytest.approx(1, abs=0.01)


def test_a_channel_that_is_felt_more_gets_more_weight():
    """The mixed channels of independent ones are these, the strongest first."""
    loud = np.array([4, 2, 1, 0.5, 0.25], np.float32)[None, :, None, None]
    features = np.random.default_rng(0).standard_normal((24, 5, 8, 8)).astype(np.float32) * loud
    felt = np.array([1.0, 4.0, 2.0, 8.0, 0.5])
    weights, _ = measure(felt[None, :, None, None], features)
    want = (felt / felt.mean()) ** CHANNEL_POWER
    np.testing.assert_allclose(weights.gain, want, rtol=0.05)


def test_a_frequency_that_is_not_felt_gets_the_least_weight():
    """A tail that takes the mean over the map feels the lowest frequency alone."""

    def divergence(index: int, moved: Array) -> float:
        change = (moved - FEATURES[index : index + 1]).mean(axis=(2, 3), dtype=float)
        return float(np.square(change).sum())

    weights, _ = measure_weights(
        list(FEATURES[:, None]), PLAIN, divergence, np.random.default_rng(0), lambda: None
    )
    bands = weights.bands.reshape(8, 8)
    assert bands[0, 0] == bands.max()
    assert bands[7, 7] == bands.min() == pytest.approx(1 / LARGEST_WEIGHT)
    assert bands.max() <= LARGEST_WEIGHT


def test_a_tail_that_feels_nothing_gets_even_weights():
    weights, felt = measure(np.zeros((1, 5, 8, 8)))
    np.testing.assert_array_equal(weights.gain, 1)
    np.testing.assert_array_equal(weights.bands, 1)
    assert felt == 0


def test_features_without_variation_get_even_weights():
    weights, felt = measure(np.ones((1, 5, 8, 8)), np.zeros((20, 5, 8, 8), np.float32))
    assert np.isfinite(weights.gain).all()
    assert np.isfinite(felt)


def test_a_tick_is_heard_for_every_group():
    ticks = []
    measure_weights(
        list(FEATURES[:, None]),
        PLAIN,
        lambda *_: 0.0,
        np.random.default_rng(0),
        lambda: ticks.append(1),
    )
    assert len(ticks) == count_groups(PLAIN) == 5 + group_bands((8, 8)).max() + 1


def test_the_same_seed_gives_the_same_weights():
    felt = np.random.default_rng(1).uniform(0.1, 2, (1, 5, 8, 8))
    first, second = (measure(felt) for _ in range(2))
    np.testing.assert_array_equal(first[0].gain, second[0].gain)
    np.testing.assert_array_equal(first[0].bands, second[0].bands)


@pytest.mark.parametrize("bad", [np.inf, np.nan, -np.inf])
def test_answers_that_are_not_finite_do_not_count(bad: float):
    def divergence(index: int, moved: Array) -> float:
        change = float(np.square(moved - FEATURES[index : index + 1], dtype=float).sum())
        return bad if index % 3 == 0 else change

    weights, felt = measure_weights(
        list(FEATURES[:, None]), PLAIN, divergence, np.random.default_rng(0), lambda: None
    )
    np.testing.assert_allclose(weights.gain, 1, atol=0.01)
    np.testing.assert_allclose(weights.bands, 1, atol=0.01)
    assert felt == pytest.approx(1, abs=0.01)


def test_without_any_finite_answer_weights_are_even():
    weights, felt = measure_weights(
        list(FEATURES[:, None]), PLAIN, lambda *_: np.nan, np.random.default_rng(0), lambda: None
    )
    np.testing.assert_array_equal(weights.gain, 1)
    np.testing.assert_array_equal(weights.bands, 1)
    assert np.isnan(felt)


def test_a_tensor_whose_sensitivity_is_not_known_gets_the_others_weight():
    weights = [Weights(np.ones(3, np.float32), np.ones(4, np.float32)) for _ in range(3)]
    for each in balance(weights, [2.0, np.nan, 2.0]):
        np.testing.assert_array_equal(each.gain, 1)
    for each in balance(weights, [np.nan] * 3):
        np.testing.assert_array_equal(each.gain, 1)


@given(st.integers(1, 2000))
def test_every_channel_has_a_group(count: int):
    groups = group_channels(count)
    assert len(groups) == count
    assert sorted(set(groups.tolist())) == list(range(min(count, CHANNEL_GROUPS)))
    assert (np.diff(groups) >= 0).all()
    alone = CHANNELS_ALONE if count > CHANNEL_GROUPS else count
    assert groups[:alone].tolist() == list(range(alone))


@given(st.integers(1, 16), st.integers(1, 16))
def test_every_frequency_has_a_group_by_its_distance(height: int, width: int):
    groups = group_bands((height, width))
    assert len(groups) == height * width
    assert sorted(set(groups.tolist())) == list(range(groups.max() + 1))
    assert groups.max() < BAND_GROUPS
    assert groups[0] == 0
    down, right = np.arange(height) / height, np.arange(width) / width
    distance = np.hypot(down[:, None], right[None]).reshape(-1)
    order = np.argsort(distance, kind="stable")
    assert (np.diff(groups[order]) >= 0).all()


def test_a_cut_balances_its_tensors_by_what_each_is_felt():
    weights = [Weights(np.ones(3, np.float32), np.ones(4, np.float32)) for _ in range(2)]
    balanced = balance(weights, [4.0, 1.0])
    ratio = balanced[0].gain / balanced[1].gain
    np.testing.assert_allclose(ratio, 2, rtol=1e-6)
    np.testing.assert_array_equal(balanced[0].bands, 1)


def test_a_cut_without_tensors_to_code_has_nothing_to_balance():
    assert balance([], []) == []


@pytest.mark.parametrize("felt", [[0.0, 0.0], [0.0, 1.0], [1e300, 1e-300]])
def test_balanced_weights_are_positive_and_finite(felt: list[float]):
    weights = [Weights(np.ones(3, np.float32), np.ones(4, np.float32)) for _ in range(2)]
    for weight in balance(weights, felt):
        assert (weight.gain > 0).all()
        assert np.isfinite(weight.gain).all()
