"""Rates of one cut: the coarsest step that keeps a floor, and what is worth tables."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitserve.calibrate.cut import CODED_ELEMENTS_MIN, _code, _last, is_coded
from splitserve.codec import step_size
from splitserve.codec.tables import OCTAVE, STEP_CODES
from splitserve.tensors import TensorSpec


@given(st.integers(0, 200), st.integers(0, 200), st.integers(-5, 205))
def test_bisection_finds_the_last_good_code(low: int, more: int, last_good: int):
    high = low + more
    asked = []

    def is_good(code: int) -> bool:
        assert low <= code <= high
        asked.append(code)
        return code <= last_good

    want = min(high, last_good) if low <= last_good else None
    assert _last(low, high, is_good) == want
    assert len(asked) <= 9


@given(st.floats(1e-12, 1e12))
def test_a_code_is_that_of_the_nearest_step(step: float):
    assert step_size(_code(step)) == pytest.approx(step, rel=2 ** (0.5 / OCTAVE) - 1 + 1e-9)


@pytest.mark.parametrize(("step", "code"), [(0.0, 113), (1e30, STEP_CODES - 1), (1.0, 512)])
def test_a_code_is_always_in_range(step: float, code: int):
    assert _code(step) == code


@pytest.mark.parametrize("elements", [1, CODED_ELEMENTS_MIN - 1, CODED_ELEMENTS_MIN])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8", "int64", "bool"])
def test_enough_numbers_that_may_be_rounded_are_worth_tables(dtype: str, elements: int):
    spec = TensorSpec(name="x", dtype=dtype, shape=("batch", elements))
    assert is_coded(spec) == (elements >= CODED_ELEMENTS_MIN and dtype not in ("int64", "bool"))
