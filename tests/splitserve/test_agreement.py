"""Judging answers: the interval, the best class, the error, and how far answers are apart."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from splitserve.agreement import Judge, best_class, estimate, judge_of, make_judge
from splitserve.artifact import load_artifact
from splitserve.errors import UsageError
from splitserve.tensors import Array, TensorSpec

ARGMAX = Judge(("logits",), "argmax", 0.05)
ERROR = Judge(("logits",), "error", 0.05)


def answer(*values: float) -> dict[str, Array]:
    return {"logits": np.array([values], np.float32)}


@pytest.mark.parametrize("count", [1, 2, 10, 263, 5000])
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99, 1])
def test_the_interval_is_wilsons(share: float, count: int):
    hits = round(share * count)
    got = estimate([True] * hits + [False] * (count - hits))
    want = binomtest(hits, count).proportion_ci(method="wilson")
    assert got.value == pytest.approx(100 * hits / count, abs=1e-3)
    assert (got.low, got.high) == pytest.approx((100 * want.low, 100 * want.high), abs=1e-3)


def test_the_interval_is_that_of_the_published_example():
    """Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263 is 0.2553 to 0.3662."""
    got = estimate([True] * 81 + [False] * 182)
    assert (got.low, got.high) == pytest.approx((25.53, 36.62), abs=0.006)


@given(st.lists(st.booleans(), min_size=1, max_size=300))
def test_the_interval_holds_the_share_and_stays_within_bounds(hits: list[bool]):
    got = estimate(hits)
    assert 0 <= got.low <= got.value <= got.high <= 100


def test_argmax_agrees_when_the_best_class_is_the_same():
    assert ARGMAX.agrees(answer(0, 5, 1), answer(-9, 2, 1.9))
    assert not ARGMAX.agrees(answer(0, 5, 6), answer(0, 6, 5))
    assert best_class(np.array([[[[1.0]], [[3.0]], [[2.0]]]])) == 1


def test_argmax_agrees_when_every_row_does():
    wanted = {"logits": np.array([[0.0, 5, 1], [7, 0, 0]], np.float32)}
    got = {"logits": np.array([[0.0, 5, 1], [0, 4, 0]], np.float32)}
    assert not ARGMAX.agrees(got, wanted)
    # of all six scores the largest stays where it is, and that says nothing about the first row
    assert not ARGMAX.agrees({"logits": np.array([[6.0, 5, 1], [7, 0, 0]])}, wanted)
    assert ARGMAX.agrees({"logits": np.array([[0.0, 9, 1], [7, 0, 0]])}, wanted)


def test_the_divergence_is_the_mean_over_the_rows():
    wanted, got = np.array([[0.7, 0.3], [3.0, 1.0]]), np.array([[0.5, 0.5], [-1.0, 1.0]])
    rows = [ARGMAX.divergence(answer(*a), answer(*b)) for a, b in zip(got, wanted, strict=True)]
    both = ARGMAX.divergence({"logits": got}, {"logits": wanted})
    assert both == pytest.approx(np.mean(rows), rel=1e-5)


@pytest.mark.parametrize("judge", [ARGMAX, ERROR])
def test_scores_that_are_not_finite_make_a_divergence_that_is_not(judge: Judge):
    assert not np.isfinite(judge.divergence(answer(np.inf, 1, np.nan), answer(1, 2, 3)))


def test_a_cut_is_judged_as_it_was_calibrated(calibrated_artifact: Path):
    manifest = load_artifact(calibrated_artifact).manifest
    assert judge_of(manifest).kind == judge_of(manifest, 1).kind == "argmax"
    first, *rest = manifest.cuts
    assert first.calibration is not None
    by_error = first.calibration.model_copy(update={"agreement_is": "error", "tolerance": 0.2})
    mixed = manifest.model_copy(
        update={"cuts": (*rest, first.model_copy(update={"calibration": by_error}))}
    )
    assert judge_of(mixed, len(mixed.cuts)).tolerance == 0.2
    assert judge_of(mixed, 1).kind == judge_of(mixed).kind == "argmax"
    plain = manifest.model_copy(update={"cuts": ()})
    assert judge_of(plain).kind == "argmax"


@pytest.mark.parametrize(("factor", "is_good"), [(1.0, True), (1.049, True), (1.051, False)])
def test_error_agrees_within_the_tolerance(factor: float, is_good: bool):
    wanted = answer(3, -4, 12)
    got = {"logits": wanted["logits"] * np.float32(factor)}
    assert ERROR.agrees(got, wanted) == is_good
    assert ERROR.divergence(got, wanted) == pytest.approx((factor - 1) ** 2, rel=1e-3, abs=1e-12)


def test_error_counts_every_output():
    judge = Judge(("a", "b"), "error", 0.05)
    wanted = {"a": np.array([[3.0]]), "b": np.array([[[4.0]]])}
    assert judge.divergence(wanted | {"b": np.array([[[4.5]]])}, wanted) == pytest.approx(0.01)
    assert judge.agrees(wanted, wanted)


def test_error_takes_whole_numbers_and_zeros():
    judge = Judge(("n",), "error", 0.05)
    wanted = {"n": np.array([[0, 0]], np.uint8)}
    assert judge.agrees(wanted, wanted)
    assert not judge.agrees({"n": np.array([[0, 1]], np.uint8)}, wanted)
    assert not judge.agrees(wanted, {"n": np.array([[0, 1]], np.uint8)})


def test_the_divergence_of_logits_is_kullback_and_leiblers():
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.25, 0.25])
    want = float((p * np.log(p / q)).sum())
    logits = ARGMAX.divergence(answer(*(np.log(q) + 3)), answer(*(np.log(p) - 5)))
    assert logits == pytest.approx(want, rel=1e-4)
    assert ARGMAX.divergence(answer(*q), answer(*p)) == pytest.approx(want, rel=1e-4)
    assert ARGMAX.divergence(answer(*q), answer(*q)) == pytest.approx(0, abs=1e-9)


def test_the_divergence_is_finite_where_a_probability_is_zero():
    assert np.isfinite(ARGMAX.divergence(answer(0, 1, 0), answer(0.5, 0, 0.5)))
    assert np.isfinite(ARGMAX.divergence(answer(-1e30, 1e30, 0), answer(1e30, 0, -1e30)))


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=9), st.integers(0, 999))
def test_the_divergence_is_never_negative(scores: list[float], seed: int):
    moved = np.array(scores) + np.random.default_rng(seed).standard_normal(len(scores))
    assert ARGMAX.divergence(answer(*moved), answer(*scores)) > -1e-6


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        (("batch", 10), "argmax"),
        (("batch", 1), "error"),
        (("batch", "classes"), "error"),
        (("batch", 10, 3), "error"),
        (("batch",), "error"),
        ((), "error"),
    ],
)
def test_a_row_of_scores_is_judged_by_its_best_class(shape: tuple[int | str, ...], kind: str):
    outputs = [TensorSpec(name="y", dtype="float32", shape=shape)]
    judge = make_judge(outputs, None, 0.1)
    assert (judge.kind, judge.outputs, judge.tolerance) == (kind, ("y",), 0.1)
    assert make_judge(outputs, "error", 0.1).kind == "error"
    if kind == "error":
        with pytest.raises(UsageError, match=r"needs class scores, and y is .*; use --agreement"):
            make_judge(outputs, "argmax", 0.1)
