"""Specs of tensors: sizes, and how concrete shapes fit them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from splitserve.tensors import DTYPES, TensorSpec, mismatch


def spec(*shape: int | str, name: str = "x", dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def test_elements_count_a_free_dimension_as_told() -> None:
    assert spec("batch", 80, 14, 14).elements() == 15_680
    assert spec("batch", 80, 14, 14).elements(free=3) == 3 * 15_680
    assert spec().elements() == 1


def test_elements_of_an_absurd_shape_do_not_wrap_around() -> None:
    assert spec(2**40, 2**40).elements() == 2**80
    assert spec(2**32, 2**32).raw_bytes() == 2**66


@pytest.mark.parametrize("dtype", DTYPES)
def test_raw_bytes_are_those_of_numpy(dtype: str) -> None:
    assert spec(3, 5, dtype=dtype).raw_bytes() == np.zeros((3, 5), dtype).nbytes


@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": "object"},
        {"dtype": "str"},
        {"dtype": "f4"},
        {"shape": (0,)},
        {"shape": (-1,)},
        {"shape": (1.5,)},
        {"shape": ("",)},
        {"name": ""},
        {"order": "C"},
    ],
)
def test_spec_of_nothing_we_carry_is_refused(fields: dict[str, object]) -> None:
    good = {"name": "x", "dtype": "float32", "shape": (1,)}
    TensorSpec.model_validate(good)
    with pytest.raises(ValidationError):
        TensorSpec.model_validate(good | fields)


@given(st.lists(st.integers(1, 9), max_size=4))
def test_concrete_shape_fits_itself(shape: list[int]) -> None:
    assert mismatch([spec(*shape)], [shape]) is None


@pytest.mark.parametrize("shape", [(4,), (1, 3), (3, 4), (0, 4), (1, 4, 1), ()])
def test_other_shape_does_not_fit(shape: tuple[int, ...]) -> None:
    assert mismatch([spec("n", 4)], [(3, 4)]) is None
    problem = mismatch([spec(1, 4)], [shape])
    assert problem == f"x: shape {list(shape)} where [1, 4] is expected"


def test_free_dimension_is_one_or_more() -> None:
    assert mismatch([spec("n")], [(1,)]) is None
    assert mismatch([spec("n")], [(0,)]) is not None
    assert mismatch([spec("n")], [(-1,)]) is not None


def test_same_free_name_is_the_same_size_in_every_tensor() -> None:
    pair = [spec("n", 4), spec("n", "m", name="y")]
    assert mismatch(pair, [(2, 4), (2, 7)]) is None
    assert mismatch(pair, [(2, 4), (3, 7)]) == "y: shape [3, 7] where ['n', 'm'] is expected"
    assert mismatch([spec("n", "n")], [(2, 3)]) is not None


def test_number_of_tensors_must_fit() -> None:
    assert mismatch([spec(1)], []) == "0 tensors where 1 are expected"
    assert mismatch([], []) is None
