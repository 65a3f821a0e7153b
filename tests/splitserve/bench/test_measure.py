import numpy as np
import pytest

from splitserve.bench.measure import median, p95, ratio_interval, total_ratio_interval


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


def test_ratio_of_totals_is_of_the_sums_and_its_interval_holds_it():
    upper = [1.0, 2.0, 3.0, 10.0] * 20
    lower = [2.0, 2.0, 4.0, 10.0] * 20
    ratio, low, high = total_ratio_interval(upper, lower, block=8)
    assert ratio == pytest.approx(16 / 18)
    assert low <= ratio <= high
    assert total_ratio_interval(upper, upper, block=7) == (1.0, 1.0, 1.0)


def test_blocks_widen_the_interval_of_values_that_hang_together():
    upper = [1.0] * 100 + [5.0] * 100
    lower = [1.0] * 200
    _, low, high = total_ratio_interval(upper, lower, block=1)
    _, low_blocks, high_blocks = total_ratio_interval(upper, lower, block=50)
    assert high_blocks - low_blocks > 2 * (high - low)
