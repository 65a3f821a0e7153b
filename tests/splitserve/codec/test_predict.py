"""Which table codes which coefficient: by its deviation in steps, alone or after a known frame."""

from dataclasses import replace

import numpy as np
import pytest
from features import correlated, moving_tables
from hypothesis import given
from hypothesis import strategies as st

from splitserve.codec.predict import TRIED, Predictor
from splitserve.codec.rans import SHIFT_MAX
from splitserve.codec.tables import (
    CLASSES,
    OCTAVE,
    OFFSETS,
    PULL_ONE,
    STEP_CODES,
    STEP_ZERO,
    UNIT_CLASS,
    FeatureTables,
)

TABLES = moving_tables(correlated((24, 5, 8, 8)))
SHAPE = (2, 5, 3, 64)


def scaled(scale: int) -> FeatureTables:
    """Tables whose coefficients all have one deviation, 2^((scale - 512) / 8)."""
    return replace(TABLES, scales=np.full_like(TABLES.scales, scale))


def test_a_deviation_of_one_step_has_the_class_of_one_step():
    for parameter in (0, 300, STEP_ZERO, 1000):
        alone = Predictor(scaled(parameter), parameter).alone(1, 1)
        assert set(alone.classes.tolist()) == {UNIT_CLASS}
        assert set(alone.model.tables.tolist()) == {UNIT_CLASS * OFFSETS}
        assert not alone.model.shifts.any()


def test_a_deviation_below_a_sixteenth_of_the_step_is_left_out():
    assert Predictor(scaled(STEP_ZERO - UNIT_CLASS), STEP_ZERO).alone(1, 1).places.size == 5 * 64
    assert Predictor(scaled(STEP_ZERO - UNIT_CLASS - 1), STEP_ZERO).alone(1, 1).places.size == 0


def test_coefficients_are_spread_over_items_channels_blocks_and_frequencies():
    scales = TABLES.scales.copy()
    scales[2, 7] = -STEP_CODES
    alone = Predictor(replace(TABLES, scales=scales), 400).alone(*SHAPE[::2])
    is_coded = np.zeros(SHAPE, bool)
    is_coded.reshape(-1)[alone.places] = True
    assert not is_coded[:, 2, :, 7].any()
    is_coded[:, 2, :, 7] = True
    assert is_coded.all()


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("parameter", [0, 1, 100, 511, 512, 900, 1023])
@pytest.mark.parametrize("scale", [-1024, -1, 0, 512, 700, 1024])
def test_every_table_and_shift_there_can_be_exists(scale: int, parameter: int, level: int):
    drifts = np.full_like(TABLES.drifts, scale)
    predictor = Predictor(replace(scaled(scale), drifts=drifts), parameter)
    values = np.random.default_rng(0).integers(-32767, 32768, SHAPE).astype(np.int32)
    model = predictor.after(values, level).model if level else predictor.alone(*SHAPE[::2]).model
    assert len(model.tables) == len(model.shifts)
    assert model.tables.max(initial=0) < CLASSES * OFFSETS
    assert model.shifts.max(initial=0) <= SHIFT_MAX


def test_a_shift_halves_the_deviation_until_a_table_fits():
    for above in range(CLASSES - UNIT_CLASS + SHIFT_MAX * OCTAVE - OCTAVE):
        model = Predictor(scaled(STEP_ZERO + above), STEP_ZERO).alone(1, 1).model
        row, shift = int(model.tables[0]) // OFFSETS, int(model.shifts[0])
        assert row + OCTAVE * shift == UNIT_CLASS + above
        assert shift == 0 or row >= CLASSES - OCTAVE


@given(st.integers(-32767, 32767), st.integers(0, PULL_ONE))
def test_the_mean_is_the_pulled_value_and_the_table_knows_its_quarter(value: int, pull: int):
    """mean + sign * offset is within an eighth of a step of the true expectation."""
    pulls = np.full_like(TABLES.pulls, pull)
    predictor = Predictor(replace(scaled(STEP_ZERO), pulls=pulls), STEP_ZERO)
    after = predictor.after(np.full((1, 5, 1, 64), value, np.int32), 1)
    offset = np.array([0, 0.125, 0.375])[after.model.tables % OFFSETS]
    assert np.abs(after.mean + after.sign * offset - value * pull / PULL_ONE).max() <= 0.125
    assert set(after.sign.tolist()) <= {-1, 1}


def test_after_a_known_frame_the_tables_are_never_wider_than_alone():
    predictor = Predictor(TABLES, 480)
    alone = predictor.alone(*SHAPE[::2])
    for level in (1, 2):
        after = predictor.after(np.zeros(SHAPE, np.int32), level)
        widths = [
            model.tables.astype(int) // OFFSETS + OCTAVE * model.shifts
            for model in (after.model, alone.model)
        ]
        assert (widths[0] <= widths[1]).all()
        assert len(after.mean) == len(after.sign) == len(alone.places)


@pytest.mark.parametrize("shape", [(1, 5, 3, 64), (1, 5, 40, 64), (3, 5, 20, 64)])
def test_the_first_coefficients_are_predicted_as_all_of_them_are(shape: tuple[int, ...]):
    predictor = Predictor(TABLES, 430)
    values = np.random.default_rng(0).integers(-90, 91, shape).astype(np.int32)
    for level in (1, 2):
        first, whole = predictor.first_after(values, level), predictor.after(values, level)
        count = min(TRIED, len(whole.mean))
        for got, want in (
            (first.mean, whole.mean),
            (first.sign, whole.sign),
            (first.model.tables, whole.model.tables),
            (first.model.shifts, whole.model.shifts),
        ):
            np.testing.assert_array_equal(got, want[:count])


def test_a_batch_is_not_remembered():
    """A peer chooses the batch, and what is remembered is larger than the features."""
    predictor = Predictor(TABLES, 480)
    assert predictor.alone(1, 3) is predictor.alone(1, 3)
    assert predictor.alone(64, 3) is not predictor.alone(64, 3)
