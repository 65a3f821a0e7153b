"""Rates of one cut: the coarsest step that keeps a floor, and what is worth tables."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitserve.agreement import Judge
from splitserve.calibrate.cut import (
    COARSEST_STEP,
    CODED_ELEMENTS_MIN,
    FINEST_STEP,
    CutCalibrator,
    Material,
    _code,
    _last,
    is_coded,
    most_searches,
)
from splitserve.codec import step_size
from splitserve.codec.tables import OCTAVE, STEP_CODES
from splitserve.tensors import Array, Tensors, TensorSpec


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
    seen = [{"x": np.zeros((1, elements), dtype)}] * 2
    assert is_coded(spec, seen) == (
        elements >= CODED_ELEMENTS_MIN and dtype not in ("int64", "bool")
    )


def test_free_sizes_count_as_they_were_seen():
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 8, "height", "width"))
    assert is_coded(spec, [{"x": np.zeros((1, 8, 20, 20), np.float32)}] * 2)
    assert not is_coded(spec, [{"x": np.zeros((1, 8, 2, 2), np.float32)}] * 2)


def test_a_tensor_of_another_size_in_every_input_is_stored():
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", "found"))
    assert not is_coded(spec, [{"x": np.zeros((1, count), np.float32)} for count in (80, 81)])


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_tensor_with_infinities_is_stored(value: float):
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 80))
    assert not is_coded(
        spec, [{"x": np.full((1, 80), number, np.float32)} for number in (0, value)]
    )


class _Tail:
    """Answers with one score for the mean; remembers what it was given."""

    def __init__(self) -> None:
        self.seen: list[Array] = []

    def __len__(self) -> int:
        return 2

    def run(self, tensors: Tensors, first: int, last: int) -> Tensors:
        assert (first, last) == (1, 2)
        self.seen.append(tensors["x"])
        return {"y": np.array([[float(tensors["x"].mean()), 1.0]])}


def calibrator(chain: _Tail, features: Sequence[Array]) -> tuple[CutCalibrator, list[int]]:
    """A calibrator for given features, and the list of its ticks."""
    spec = TensorSpec(
        name="x", dtype=str(features[0].dtype), shape=("batch", *features[0].shape[1:])
    )
    seen = [{"x": values} for values in features]
    wanted = [{"y": np.array([[float(values.mean()), 1.0]])} for values in features]
    material = Material(1, (spec,), seen, wanted, seen, wanted, [], [])
    ticks: list[int] = []
    judge = Judge(("y",), "error", 0.05)
    return CutCalibrator(chain, material, judge, 0, ticks.append), ticks  # type: ignore[arg-type]


def test_noise_is_rounded_and_clipped_as_the_codec_does():
    """Without it 130.2 becomes -126 in int8, and the tail is felt to be far more sensitive."""
    generator, chain = np.random.default_rng(0), _Tail()
    features = [generator.integers(80, 128, (1, 4, 8, 8)).astype(np.int8) for _ in range(12)]
    calibrator(chain, features)[0].fit(False, lambda _: None)
    assert chain.seen
    assert all(values.dtype == np.int8 for values in chain.seen)
    assert min(int(values.min()) for values in chain.seen) > 0


def test_as_many_tails_run_as_were_announced():
    generator, chain = np.random.default_rng(0), _Tail()
    features = [generator.standard_normal((1, 4, 8, 8)).astype(np.float32) for _ in range(12)]
    made, ticks = calibrator(chain, features)
    announced: list[int] = []
    tables = made.fit(False, announced.append)
    assert announced == [sum(ticks)] == [len(chain.seen)]
    made.rates(tables, [95, 90])
    assert len(chain.seen) == sum(ticks) <= announced[0] + 12 * most_searches(2)


def test_a_floor_given_twice_is_found_once():
    features = list(np.random.default_rng(0).standard_normal((12, 1, 4, 8, 8)).astype(np.float32))
    made, _ = calibrator(_Tail(), features)
    assert len(made.rates(made.fit(False, lambda _: None), [50, 50])) <= 1


def test_features_without_numbers_to_round_are_stored():
    features = [np.full((1, 4, 8, 8), -np.inf, np.float32)] * 12
    assert calibrator(_Tail(), features)[0].fit(False, lambda _: None) == [None]


@given(st.integers(1, 9))
def test_no_search_measures_more_than_was_announced(floors: int):
    codes = _code(COARSEST_STEP) - _code(FINEST_STEP)
    asked: list[int] = []

    def is_good(code: int) -> bool:
        asked.append(code)
        return code <= codes - 1

    for _ in range(floors):
        _last(0, codes, is_good)
    assert len(asked) <= most_searches(floors) <= len(asked) + 3 * floors
