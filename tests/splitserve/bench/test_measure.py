import numpy as np
import pytest

from splitserve.bench.measure import median, p95, ratio_interval


def test_median_and_p95_are_numpys():
    values = [3.0, 1.0, 2.0, 10.0]
    assert median(values) == 2.5
    assert p95(values) == pytest.approx(np.percentile(values, 95))


def test_ratio_interval_holds_the_true_ratio_and_is_reproducible():
    generator = np.random.default_rng(1)
    slow, fast = generator.normal(2.0, 0.1, 200), generator.normal(1.0, 0.05, 200)
    ratio, low, high = ratio_interval(slow, fast, seed=3)
    assert low < 2.0 < high
    assert low <= ratio <= high
    assert (ratio, low, high) == ratio_interval(slow, fast, seed=3)


def test_ratio_of_equal_samples_is_one_without_width():
    assert ratio_interval([1.0] * 5, [1.0] * 5) == (1.0, 1.0, 1.0)
