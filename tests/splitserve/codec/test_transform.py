"""Features to coefficients and back, for every rank, axis and odd size."""

import math
from dataclasses import replace

import numpy as np
import pytest
from features import correlated, tables_for
from hypothesis import given
from hypothesis import strategies as st

from splitserve.calibrate.fit import MIX_CHANNELS_MAX, plain_tables
from splitserve.codec import Transform, round_to_dtype
from splitserve.codec.tables import BLOCK_MAX
from splitserve.codec.transform import block_sizes, cosine_matrix, from_maps, to_maps
from splitserve.errors import CodecError


@st.composite
def placed_shapes(draw: st.DrawFn) -> tuple[tuple[int, ...], int]:
    """A shape of rank 1 to 5 with a channel axis: 0 for none, or any other."""
    rank = draw(st.integers(1, 5))
    rest = draw(
        st.lists(st.integers(1, 19 if rank < 5 else 6), min_size=rank - 1, max_size=rank - 1)
    )
    return (draw(st.integers(1, 3)), *rest), draw(st.integers(0, rank - 1))


@given(placed_shapes(), st.integers(0, 99))
def test_a_tensor_comes_back_from_its_maps(placed: tuple[tuple[int, ...], int], seed: int):
    shape, axis = placed
    tensor = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    maps = to_maps(tensor, axis)
    assert maps.ndim == 4
    assert maps.shape[:2] == (shape[0], shape[axis] if axis else 1)
    np.testing.assert_array_equal(from_maps(maps, shape, axis), tensor)


def test_a_scalar_is_one_map_of_one_value():
    assert to_maps(np.array(3.5), 0).tolist() == [[[[3.5]]]]
    assert from_maps(to_maps(np.array(3.5), 0), (), 0).shape == ()


@given(placed_shapes(), st.integers(0, 99))
def test_features_come_back_from_their_coefficients(placed: tuple[tuple[int, ...], int], seed: int):
    shape, axis = placed
    fitted = np.random.default_rng(1).standard_normal((30, *shape[1:])).astype(np.float32)
    transform = Transform(plain_tables(fitted, axis))
    tensor = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    coefficients = transform.forward(tensor)
    assert coefficients.shape == transform.coefficients_shape(shape)
    assert coefficients.dtype == np.float32
    got = transform.backward(coefficients, shape)
    assert (got.shape, got.dtype) == (shape, np.float32)
    np.testing.assert_allclose(got, tensor, atol=2e-4)


@pytest.mark.parametrize(
    ("shape", "axis"), [((2, 6, 7, 9), 1), ((2, 6, 7, 9), 3), ((2, 33, 8), 2), ((2, 40), 1)]
)
def test_weights_and_means_do_not_change_what_comes_back(shape: tuple[int, ...], axis: int):
    plain = plain_tables(correlated((60, *shape[1:]), 1, axis), axis)
    generator = np.random.default_rng(2)
    tables = replace(
        plain,
        gain=generator.uniform(0.25, 4, plain.gain.shape).astype(np.float32),
        bands=generator.uniform(0.25, 4, plain.bands.shape).astype(np.float32),
        bias=generator.standard_normal(plain.bias.shape).astype(np.float32),
    )
    tensor, transform = correlated(shape, 3, axis), Transform(tables)
    got = transform.backward(transform.forward(tensor), shape)
    np.testing.assert_allclose(got, tensor, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 5, 16, 16), (1, 4, 8, 6), (2, 3, 1, 16)])
def test_energy_is_kept_where_blocks_divide_the_map(shape: tuple[int, ...]):
    transform = Transform(plain_tables(correlated((20, *shape[1:])), 1))
    tensor = correlated(shape, 1)
    coefficients = transform.forward(tensor)
    assert coefficients.size == tensor.size
    assert np.square(coefficients).sum() == pytest.approx(np.square(tensor).sum(), rel=1e-5)


@pytest.mark.parametrize("size", range(1, BLOCK_MAX + 1))
def test_the_cosine_matrix_is_orthonormal(size: int):
    matrix = cosine_matrix(size)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-13)
    assert (matrix[0] > 0).all()


@pytest.mark.parametrize(
    ("dtype", "want"),
    [
        ("uint8", [0, 0, 2, 255]),
        ("int8", [-128, 0, 2, 127]),
        ("float16", [-65504, 0.25, 1.5, 65504]),
        ("float32", [-1e9, 0.25, 1.5, 1e9]),
        ("float64", [-1e9, 0.25, 1.5, 1e9]),
    ],
)
def test_decoded_values_are_rounded_and_clipped_to_their_type(dtype: str, want: list[float]):
    got = round_to_dtype(np.array([-1e9, 0.25, 1.5, 1e9], np.float32), dtype)
    assert got.dtype == dtype
    assert got.tolist() == want


def test_the_cosine_matrix_is_that_of_the_textbook():
    """DCT-II by its definition: sum of x_n cos(pi / N (n + 1/2) k)."""
    x = np.random.default_rng(0).standard_normal(7)
    want = [sum(x[n] * math.cos(math.pi / 7 * (n + 0.5) * k) for n in range(7)) for k in range(7)]
    want = [value * math.sqrt((1 if k == 0 else 2) / 7) for k, value in enumerate(want)]
    np.testing.assert_allclose(cosine_matrix(7) @ x, want, atol=1e-12)


@given(st.integers(0, 300), st.integers(0, 300))
def test_blocks_cover_the_map_with_the_least_padding(height: int, width: int):
    for size, block in zip((height, width), block_sizes(height, width), strict=True):
        count = math.ceil(max(1, size) / BLOCK_MAX)
        assert 1 <= block <= BLOCK_MAX
        assert 0 <= count * block - max(1, size) < count


def test_more_channels_than_may_be_mixed_stay_apart():
    """A change in one channel changes the coefficients of that channel alone."""
    channels = MIX_CHANNELS_MAX + 1
    tables = tables_for(correlated((20, channels, 2, 2)))
    assert tables.basis.size == 0
    assert tables.gain.shape == (channels,)
    transform, tensor = Transform(tables), correlated((1, channels, 2, 2), 1)
    before = transform.forward(tensor)
    tensor[0, 7] += 1
    assert np.flatnonzero((transform.forward(tensor) != before).any(axis=(0, 2, 3))).tolist() == [7]


def test_as_many_channels_as_may_be_mixed_are_mixed():
    generator = np.random.default_rng(0)
    features = generator.standard_normal((300, MIX_CHANNELS_MAX, 2, 2)).astype(np.float32)
    tables = plain_tables(features, 1)
    assert tables.basis.shape == (MIX_CHANNELS_MAX, MIX_CHANNELS_MAX)
    np.testing.assert_allclose(tables.basis.T @ tables.basis, np.eye(MIX_CHANNELS_MAX), atol=1e-5)


def test_mixing_gathers_what_the_channels_share():
    """Eight channels that say the same are one."""
    one = correlated((30, 1, 8, 8))
    features = np.repeat(one, 8, axis=1) + np.float32(1e-3) * correlated((30, 8, 8, 8), 5)
    coefficients = Transform(plain_tables(features, 1)).forward(features)
    energy = np.square(coefficients).sum(axis=(0, 2, 3))
    assert energy[0] / energy.sum() > 0.999


@pytest.mark.parametrize(
    "shape", [(), (1,), (1, 6), (1, 6, 8, 8), (1, 4, 5, 8), (0, 5, 8, 8), (1, 5, 0, 8)]
)
def test_a_tensor_of_other_channels_is_refused(shape: tuple[int, ...]):
    transform = Transform(tables_for(correlated((20, 5, 8, 8))))
    with pytest.raises(CodecError, match="do not fit the shape"):
        transform.coefficients_shape(shape)


def test_another_height_and_width_than_was_fitted_travels_too():
    transform = Transform(tables_for(correlated((20, 5, 8, 8))))
    tensor = correlated((2, 5, 11, 19), 1)
    assert transform.coefficients_shape(tensor.shape) == (2, 5, 2 * 3, 64)
    got = transform.backward(transform.forward(tensor), tensor.shape)
    np.testing.assert_allclose(got, tensor, atol=1e-4)
