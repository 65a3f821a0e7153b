"""What a stream's next frame has in common with the one before, by frequency."""

import numpy as np
import pytest
from features import correlated, spec_of, tables_for

from splitserve.calibrate.motion import LEAST_LEFT, NOISE, SHIFTS, fit_motion, moved_pictures
from splitserve.codec import StepAnsCodec
from splitserve.codec.tables import OCTAVE, PULL_ONE, STEP_ZERO

FEATURES = correlated((40, 5, 8, 8))
TABLES = tables_for(FEATURES)


def smooth(count: int, size: int = 8) -> np.ndarray:
    """Maps of a few slow waves, longer than they are wide, so that they can be moved."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[0:size, 0 : size + 4] / size
    waves = generator.standard_normal((count, 3, 6, 1, 1))
    phases = generator.uniform(0, 2 * np.pi, (count, 3, 6, 1, 1))
    pace = np.array([0.3, 0.5, 0.8, 1.2, 2.0, 3.0])[:, None, None]
    values = waves / pace * np.sin(2 * np.pi * pace * (rows + columns) / 2 + phases)
    return values.sum(axis=2).astype(np.float32)


def test_a_frame_that_stands_still_is_kept_whole():
    tables = fit_motion(TABLES, FEATURES, [FEATURES])
    assert (tables.pulls == PULL_ONE).all()
    assert (tables.drifts == round(np.log2(LEAST_LEFT)) * OCTAVE).all()


def test_a_frame_that_has_nothing_in_common_is_not_used():
    tables = fit_motion(TABLES, FEATURES, [correlated(FEATURES.shape, 77)])
    assert tables.pulls.mean() < PULL_ONE / 5
    assert np.abs(tables.drifts).mean() < OCTAVE / 4


def test_a_small_shift_keeps_low_frequencies_and_loses_high_ones():
    wide = smooth(60)
    before, after = wide[..., :8], wide[..., 1:9]
    noise = np.random.default_rng(1).normal(0, 0.05, (2, *before.shape)).astype(np.float32)
    tables = fit_motion(tables_for(before), before + noise[0], [after + noise[1]])
    pulls, drifts = tables.pulls.reshape(8, 8), tables.drifts.reshape(8, 8)
    assert pulls[0, 0] > 0.9 * PULL_ONE
    assert drifts[0, 0] < -OCTAVE
    assert pulls[0, 0] > pulls[1, 1] > pulls[6:, 6:].mean()
    assert drifts[0, 0] < drifts[6:, 6:].mean()


def test_a_share_of_the_known_frame_is_recovered():
    half = np.float32(0.5) * FEATURES
    coefficients_mean = fit_motion(TABLES, FEATURES, [half]).pulls.astype(float)
    assert np.median(coefficients_mean) == pytest.approx(PULL_ONE / 2, abs=8)


def test_levels_are_in_the_order_of_the_frames_and_fit_the_file():
    levels = [
        FEATURES + np.float32(share) * correlated(FEATURES.shape, 9) for share in (0.01, 0.2, 2)
    ]
    tables = fit_motion(TABLES, FEATURES, levels)
    tables.check(spec_of(FEATURES))
    assert tables.pulls.shape == tables.drifts.shape == (3, 64)
    means = tables.drifts.astype(float).mean(axis=1)
    assert means.tolist() == sorted(means)


def test_features_that_are_always_zero_have_motion_too():
    zeros = np.zeros((20, 5, 8, 8), np.float32)
    fit_motion(tables_for(zeros), zeros, [zeros]).check(spec_of(zeros))


def test_what_was_fitted_saves_bytes_in_a_stream():
    noisy = FEATURES + np.float32(0.1) * correlated(FEATURES.shape, 9)
    codec = StepAnsCodec([fit_motion(TABLES, FEATURES, [noisy])], STEP_ZERO - 16)
    alone = after = 0
    for index in range(20):
        first, second = (codec.quantise(each[index : index + 1]) for each in (FEATURES, noisy))
        alone += len(codec.pack(second))
        after += len(codec.pack(second, first))
    assert after < 0.7 * alone


def test_moved_pictures_are_the_picture_moved_and_noisy():
    rows, columns = np.mgrid[0:224, 0:224]
    picture = np.stack([rows, columns, 255 - rows], axis=2).astype(np.uint8)
    moved = moved_pictures(picture, np.random.default_rng(0))
    assert len(moved) == len(SHIFTS)
    for shift, view in zip(SHIFTS, moved, strict=True):
        assert (view.shape, view.dtype) == (picture.shape, np.uint8)
        difference = view[20:-20, 20:-20].astype(float) - picture[20:-20, 20:-20]
        down, right = difference[..., 0].mean(), difference[..., 1].mean()
        assert np.hypot(down, right) == pytest.approx(shift, abs=0.8)
        assert difference[..., 0].std() == pytest.approx(NOISE, abs=0.15)


def test_moved_pictures_are_the_same_for_the_same_seed():
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    first, second = (moved_pictures(picture, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
