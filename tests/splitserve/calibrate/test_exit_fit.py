"""Fitting an exit where the right answer is known: ridge, folds, temperature, thresholds."""

import numpy as np
import pytest

from splitserve.calibrate.exit_fit import (
    FOLDS,
    Ridge,
    confidence_of,
    cross_fit,
    draw_folds,
    fit_temperature,
    make_floors,
    make_rates,
)


def problem(count: int, noise: float, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Features of very different scales, the weights, and targets that are linear in them."""
    generator = np.random.default_rng(seed)
    scale = 10.0 ** np.arange(-2, 4)
    features = 50 + generator.standard_normal((count, 6)) * scale
    weight = generator.standard_normal((6, 4)) / scale[:, None]
    targets = features @ weight + [1, 2, 3, 4] + noise * generator.standard_normal((count, 4))
    return features, weight, targets


def test_ridge_finds_the_linear_map():
    features, weight, targets = problem(200, 0.0)
    ridge = Ridge(features, targets)
    found = ridge.classifier(ridge.choose_penalty())
    np.testing.assert_allclose(found.weight, weight, rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(features @ found.weight + found.bias, targets, atol=1e-3)


def test_ridge_equals_the_normal_equations():
    features, _, targets = problem(40, 1.0)
    penalty = 0.3
    standard = (features - features.mean(0)) / features.std(0)
    gram = standard.T @ standard + penalty * len(features) * np.eye(6)
    expected = np.linalg.solve(gram, standard.T @ (targets - targets.mean(0)))
    found = Ridge(features, targets).classifier(penalty)
    np.testing.assert_allclose(found.weight, expected / features.std(0)[:, None], rtol=1e-9)


def test_more_noise_and_fewer_inputs_ask_for_a_larger_penalty():
    generator = np.random.default_rng(1)
    features = generator.standard_normal((60, 40))
    clean = features @ generator.standard_normal((40, 3))
    noisy = 0.1 * clean + 10 * generator.standard_normal(clean.shape)
    assert Ridge(features, clean).choose_penalty() < 1e-3
    assert Ridge(features, noisy).choose_penalty() > 0.1


def test_more_features_than_inputs_and_dead_features_are_fitted():
    generator = np.random.default_rng(2)
    features = generator.standard_normal((30, 80))
    features[:, 3] = 7.0
    features[:, 4] = 1e6 + 1e-7 * generator.standard_normal(30)
    ridge = Ridge(features, generator.standard_normal((30, 2)))
    found = ridge.classifier(ridge.choose_penalty())
    assert np.isfinite(found.weight).all()
    assert not found.weight[3:5].any()


def test_cross_fitting_never_judges_what_it_was_fitted_to():
    """Targets that have nothing to do with the features cannot be hit more often than by chance."""
    generator = np.random.default_rng(3)
    features, targets = generator.standard_normal((400, 60)), generator.standard_normal((400, 4))
    hits = cross_fit(features, targets, 0).argmax(1) == targets.argmax(1)
    assert 0.17 < hits.mean() < 0.33
    ridge = Ridge(features, targets)
    own = ridge.classifier(1e-6)
    assert ((features @ own.weight + own.bias).argmax(1) == targets.argmax(1)).mean() > 0.4


def test_folds_are_even_and_drawn_by_the_seed():
    folds = draw_folds(103, 5)
    assert sorted(np.bincount(folds)) == [20, 20, 21, 21, 21]
    assert len(np.bincount(folds)) == FOLDS
    np.testing.assert_array_equal(folds, draw_folds(103, 5))
    assert (folds != draw_folds(103, 6)).any()


@pytest.mark.parametrize("truth", [0.25, 1.0, 4.0])
def test_the_temperature_makes_the_confidence_the_chance_of_agreeing(truth: float):
    generator = np.random.default_rng(4)
    scores = 3 * generator.standard_normal((20_000, 5))
    hits = generator.random(20_000) < confidence_of(scores, truth)
    found = fit_temperature(scores, hits)
    assert found == pytest.approx(truth, rel=0.1)
    assert confidence_of(scores, found).mean() == pytest.approx(hits.mean(), abs=0.01)


def test_an_exit_that_never_errs_is_sure_but_not_beyond_what_was_seen():
    scores = np.random.default_rng(5).standard_normal((100, 3)) * 4
    confidence = confidence_of(scores, fit_temperature(scores, np.ones(100, bool)))
    assert 0.9 < confidence.mean() < 0.999


def test_an_exit_that_only_guesses_is_not_sure():
    generator = np.random.default_rng(6)
    scores = generator.standard_normal((2000, 10))
    confidence = confidence_of(scores, fit_temperature(scores, generator.random(2000) < 0.1))
    assert confidence.max() < 0.2


def test_rates_part_the_inputs_by_share_and_count_the_agreement_on_each_side():
    confidence = np.arange(1, 101) / 101
    hits = confidence > 0.25  # the 25 least sure ones err
    rates = {rate.upload: rate for rate in make_rates(confidence, hits)}
    assert list(rates) == [95, 90, 80, 70, 60, 50, 40, 30, 20, 10, 5]
    for upload, rate in rates.items():
        assert (confidence < rate.threshold).mean() == upload / 100
    assert rates[30].early.value == rates[30].answers.value == 100
    assert rates[10].early.value == pytest.approx(100 * 75 / 90, abs=0.001)
    assert rates[10].answers.value == 85
    assert rates[10].early.low < rates[10].early.value < rates[10].early.high


def test_floors_are_the_lowest_confidence_that_keeps_the_agreement():
    confidence = np.arange(1, 1001) / 1001
    hits = confidence > 0.5
    floors = {floor.agreement: floor for floor in make_floors(confidence, hits)}
    assert 99.9 not in floors  # takes a thousand inputs to tell
    assert floors[99].threshold == pytest.approx(0.5 - 0.005, abs=0.002)
    assert floors[80].threshold == pytest.approx(0.5 - 0.125, abs=0.002)
    assert floors[80].upload == pytest.approx(37.5, abs=0.2)
    for floor in floors.values():
        assert 100 * hits[confidence >= floor.threshold].mean() >= floor.agreement


def test_no_floor_where_the_surest_err_and_ties_are_not_parted():
    assert make_floors(np.linspace(0, 1, 500), np.linspace(0, 1, 500) < 0.4) == ()
    hits = np.array([True] * 50 + [False] * 50)
    assert make_floors(np.full(100, 0.9), hits) == ()
