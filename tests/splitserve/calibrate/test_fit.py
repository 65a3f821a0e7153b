"""Scales, shapes and probability tables, recovered from values whose distribution is known."""

from collections.abc import Sequence

import numpy as np
import pytest
from features import correlated, tables_for
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import gennorm

from splitserve.calibrate.fit import (
    MIX_CHANNELS_MAX,
    SHAPE_RANGE,
    Weights,
    channel_axis,
    cumulative_tables,
    fit_shape,
    fit_tables,
    plain_tables,
    to_scales,
    widened_classes,
)
from splitserve.codec import StepAnsCodec, Transform
from splitserve.codec.rans import REACH, TOTAL_BITS, WIDTH
from splitserve.codec.tables import (
    CLASSES,
    OCTAVE,
    OFFSETS,
    STEP_CODES,
    STEP_ZERO,
    UNIT_CLASS,
    WIDENED_ZERO,
)
from splitserve.tensors import TensorSpec

OFFSET_OF = (0.0, 0.125, 0.375)


def drawn(shape: float, sizes: tuple[int, ...], seed: int = 0) -> np.ndarray:
    values = gennorm.rvs(shape, size=sizes, random_state=np.random.default_rng(seed))
    return (values / gennorm.std(shape)).astype(np.float32)


# Axis


@pytest.mark.parametrize(
    ("shape", "channels_last", "axis"),
    [
        ((), False, 0),
        (("batch",), False, 0),
        (("batch", 10), False, 1),
        (("batch", 197, 768), False, 2),
        (("batch", 197, 768), True, 2),
        (("batch", 40, 28, 28), False, 1),
        (("batch", 28, 28, 40), True, 3),
        (("batch", 16, 4, 28, 28), False, 1),
        (("batch", 4, 28, 28, 16), True, 4),
        (("batch", "n", 28, 28), False, 0),
        (("batch", 197, "n"), False, 0),
    ],
)
def test_the_channels_are_where_pictures_and_sequences_have_them(
    shape: Sequence[int | str], channels_last: bool, axis: int
):
    spec = TensorSpec(name="x", dtype="float32", shape=tuple(shape))
    assert channel_axis(spec, channels_last) == axis


# Shape and scales


@pytest.mark.parametrize("shape", [0.75, 1.0, 1.5, 2.0])
def test_the_shape_of_a_generalised_gaussian_is_recovered(shape: float):
    values = drawn(shape, (40, 6, 10, 64)) * np.float32(0.01)
    deviation = np.sqrt(np.square(values, dtype=np.float64).mean(axis=(0, 2)))
    assert fit_shape(values, deviation) == pytest.approx(shape, abs=0.08)


def test_values_of_different_deviations_have_the_same_shape():
    loud = np.exp2(np.linspace(-9, 9, 64))
    values = (drawn(1.0, (40, 6, 10, 64)) * loud).astype(np.float32)
    deviation = np.sqrt(np.square(values, dtype=np.float64).mean(axis=(0, 2)))
    assert fit_shape(values, deviation) == pytest.approx(1.0, abs=0.08)


@pytest.mark.parametrize("values", [np.zeros((3, 2, 1, 4)), np.ones((3, 2, 1, 4))])
def test_the_shape_is_in_range_whatever_the_values(values: np.ndarray):
    deviation = np.sqrt(np.square(values).mean(axis=(0, 2)))
    assert SHAPE_RANGE[0] <= fit_shape(values.astype(np.float32), deviation) <= SHAPE_RANGE[1]


@pytest.mark.parametrize("code", [-100, 0, 300, STEP_ZERO, STEP_ZERO + 8, 900])
def test_a_scale_is_the_logarithm_in_eighths_of_an_octave(code: int):
    deviation = 2.0 ** ((code - STEP_ZERO) / OCTAVE)
    assert to_scales(np.array([deviation])).tolist() == [code]


@pytest.mark.parametrize("deviation", [0.0, 1e-300, 1e300, 1.0])
def test_a_scale_is_always_in_range(deviation: float):
    scales = to_scales(np.array([deviation]))
    assert scales.dtype == np.int16
    assert abs(int(scales[0])) <= STEP_CODES


def test_scales_and_means_are_those_of_the_coefficients():
    features = correlated((400, 4, 4, 4)) + np.float32(3)
    tables = tables_for(features)
    coefficients = Transform(tables).forward(features)
    np.testing.assert_allclose(coefficients.mean(axis=(0, 2)), 0, atol=1e-4)
    deviation = coefficients.std(axis=(0, 2))
    np.testing.assert_allclose(2.0 ** ((tables.scales - 512.0) / OCTAVE), deviation, rtol=0.05)


def test_weights_are_taken_over():
    features = correlated((100, 4, 4, 4))
    plain = plain_tables(features, 1)
    gain = np.arange(1, 5, dtype=np.float32)
    weighted = fit_tables(features, plain, Weights(gain, plain.bands))
    even = fit_tables(features, plain, Weights(plain.gain, plain.bands))
    np.testing.assert_array_equal(weighted.gain, gain)
    assert (weighted.scales[3] - even.scales[3]).tolist() == pytest.approx([16] * 16, abs=1)


def test_a_direction_that_is_always_zero_is_dropped():
    features = correlated((60, 6, 4, 4))
    features[:, 2] = 0
    features[:, 4] = features[:, 1]
    tables = tables_for(features)
    assert tables.basis.shape == (6, 4)
    codec = StepAnsCodec([tables], STEP_ZERO - 60)
    got = codec.decode(memoryview(codec.encode(features[:1])), (1, 6, 4, 4), "float32")
    np.testing.assert_allclose(got, features[:1], atol=0.05)


@pytest.mark.parametrize("value", [7, -0.3])
def test_a_channel_that_always_says_the_same_comes_back(value: float):
    """Without variation and with a mean: it costs nothing, and the tail expects it."""
    features = correlated((60, 6, 4, 4))
    features[:, 2] = value
    tables = tables_for(features)
    codec = StepAnsCodec([tables], STEP_ZERO - 60)
    got = codec.decode(memoryview(codec.encode(features[:1])), (1, 6, 4, 4), "float32")
    np.testing.assert_allclose(got, features[:1], atol=0.05)


@pytest.mark.parametrize("value", [0.0, 1.0, -1e-20, 1e20])
@pytest.mark.parametrize("shape", [(20, 5, 4, 4), (20, 5), (20,), (20, 3, 5), (20, 600)])
def test_features_that_are_constant_have_tables_too(shape: tuple[int, ...], value: float):
    features = np.full(shape, value, np.float32)
    axis = 1 if len(shape) > 1 else 0
    codec = StepAnsCodec([tables_for(features, axis)], STEP_ZERO)
    got = codec.decode(memoryview(codec.encode(features[:1])), (1, *shape[1:]), "float32")
    np.testing.assert_allclose(got, features[:1], rtol=1e-5)


@pytest.mark.parametrize("channels", [64, 300, MIX_CHANNELS_MAX])
def test_channels_that_outnumber_what_was_seen_are_not_mixed(channels: int):
    """Directions that no input showed would be left out of the basis, and lost at any step."""
    generator = np.random.default_rng(0)
    features = generator.standard_normal((50, channels)).astype(np.float32)
    codec = StepAnsCodec([tables_for(features[:30])], STEP_ZERO - 48)
    got = codec.decode(memoryview(codec.encode(features[30:])), (20, channels), "float32")
    np.testing.assert_allclose(got, features[30:], atol=0.05)


# Probabilities


@given(st.floats(*SHAPE_RANGE))
def test_probability_tables_are_whole_for_every_shape(shape: float):
    tables = cumulative_tables(shape)
    assert (tables.shape, tables.dtype) == ((CLASSES * OFFSETS, WIDTH), np.uint16)
    assert (tables[:, 0] == 0).all()
    assert (tables[:, -1] == 1 << TOTAL_BITS).all()
    assert (np.diff(tables.astype(int)) >= 1).all()


@pytest.mark.parametrize("shape", [0.7, 1.0, 2.2])
@pytest.mark.parametrize("level", [0, UNIT_CLASS, UNIT_CLASS + OCTAVE, CLASSES - 1])
@pytest.mark.parametrize("offset", range(OFFSETS))
def test_a_table_is_the_distribution_over_its_cells(level: int, shape: float, offset: int):
    deviation = 2.0 ** ((level - UNIT_CLASS) / OCTAVE)
    spread = gennorm(shape, OFFSET_OF[offset], deviation / gennorm.std(shape))
    edges = np.arange(-REACH, REACH + 2) - 0.5
    inside = np.diff(spread.cdf(edges))
    want = np.append(inside, 1 - inside.sum())
    got = np.diff(cumulative_tables(shape)[level * OFFSETS + offset].astype(int)) / 2**TOTAL_BITS
    np.testing.assert_allclose(got, want, atol=0.004)


def test_a_drift_is_widened_by_the_rounding_of_the_known_frame():
    widened = widened_classes()
    assert (widened.shape, widened.dtype) == ((256,), np.uint8)
    assert (np.diff(widened.astype(int)) >= 0).all()
    assert widened.max() < WIDENED_ZERO
    at = WIDENED_ZERO + UNIT_CLASS
    assert widened[at] == UNIT_CLASS  # one step squared and a twelfth: less than half a class more
    rounding = round(np.log2(np.sqrt(1 / 12)) * OCTAVE) + UNIT_CLASS
    assert widened[0] == rounding
    assert widened[at + 40] == UNIT_CLASS + 40
