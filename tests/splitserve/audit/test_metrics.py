"""The instruments of the audit, against independent ones."""

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from splitserve.audit.metrics import (
    binomial_interval,
    bootstrap_mean,
    distance_correlation,
    distances,
    identify,
    permutation_p,
    plain_distance_correlation,
    psnr,
    ssim,
)

PAIRS = 20


def pictures(seed: int, count: int = PAIRS, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 3, side, side))


def test_psnr_and_ssim_are_those_of_scikit_image():
    true = pictures(0)
    noise = np.random.default_rng(1).normal(0, np.linspace(0.01, 0.3, PAIRS)[:, None, None, None])
    seen = np.clip(true + noise * np.ones_like(true), 0, 1)
    for index, (mine, similar) in enumerate(zip(psnr(seen, true), ssim(seen, true), strict=True)):
        want = peak_signal_noise_ratio(true[index], seen[index], data_range=1)
        assert mine == pytest.approx(want, abs=1e-4)
        want = structural_similarity(
            true[index], seen[index], data_range=1, channel_axis=0, gaussian_weights=True,
            sigma=1.5, use_sample_covariance=False,
        )  # fmt: skip
        assert similar == pytest.approx(want, abs=1e-4)


def test_equal_pictures_are_identified_and_shuffled_ones_are_not():
    true = pictures(2, count=200)
    hits, margins = identify(true, true)
    assert hits.all()
    assert (margins > 0).all()
    assert psnr(true, true).min() == 100
    assert ssim(true, true).min() == pytest.approx(1)
    order = np.random.default_rng(3).permutation(len(true))
    found = binomial_interval(int(identify(true[order], true)[0].sum()), len(true))
    assert found.low <= 1 / len(true) <= found.high


def test_identification_looks_at_structure_not_at_brightness():
    true = pictures(4)
    assert identify(0.2 + 0.3 * true, true)[0].all()


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(0, 10, 0, 0.3085), (10, 10, 0.6915, 1), (5, 10, 0.1871, 0.8129)],
)
def test_shares_have_exact_intervals(hits: int, count: int, low: float, high: float):
    found = binomial_interval(hits, count)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_a_bootstrap_interval_holds_the_mean():
    values = np.random.default_rng(5).normal(3, 1, 400)
    found = bootstrap_mean(values)
    assert found.low < found.value < found.high
    assert found.high - found.low == pytest.approx(4 * 1 / 20, rel=0.2)


def test_independent_samples_have_no_distance_correlation_though_the_plain_one_says_so():
    generator = np.random.default_rng(6)
    one, other = generator.normal(size=(128, 3072)), generator.normal(size=(128, 3072))
    a, b = distances(one), distances(other)
    assert abs(distance_correlation(a, b)) < 0.05
    assert plain_distance_correlation(a, b) > 0.9
    assert permutation_p(a, b, 60, 0) > 0.05


def test_dependent_samples_have_one():
    generator = np.random.default_rng(7)
    one = generator.normal(size=(100, 40))
    a, b = distances(one), distances(one @ generator.normal(size=(40, 30)))
    assert distance_correlation(a, a) == pytest.approx(1)
    assert distance_correlation(a, b) > 0.1
    assert permutation_p(a, b, 60, 0) == pytest.approx(1 / 61)
