"""Ranking classes, and the JSON line."""

import io
import json

import numpy as np
import pytest

from edge_agent.answer import TOP, Answer, Label, top_labels, write_answer

NAMES = tuple(f"class {index}" for index in range(10))


def test_logits_become_probabilities_by_softmax() -> None:
    logits = np.array([[1.0, 3.0, -2.0]], np.float32)
    best = top_labels(logits, NAMES)
    powers = np.exp([1.0, 3.0, -2.0])
    assert [label.index for label in best] == [1, 0, 2]
    assert [label.name for label in best] == ["class 1", "class 0", "class 2"]
    wanted = sorted(powers / powers.sum(), reverse=True)
    assert [label.score for label in best] == pytest.approx(wanted, abs=1e-6)


def test_probabilities_stay_as_they_are() -> None:
    values = np.array([[0.2, 0.7, 0.1]], np.float32)
    assert [label.score for label in top_labels(values, NAMES)] == pytest.approx([0.7, 0.2, 0.1])


def test_huge_logits_do_not_overflow() -> None:
    best = top_labels(np.array([[1e30, -1e30, 1e4]], np.float32), NAMES)
    assert (best[0].index, best[0].score) == (0, 1.0)


def test_half_precision_is_ranked_too() -> None:
    values = np.zeros((1, 1000), np.float16)
    values[0, 321] = 9
    assert top_labels(values, ())[0] == Label(321, "321", pytest.approx(0.89, abs=0.01))


def test_at_most_the_best_five_are_named_and_ties_keep_their_order() -> None:
    best = top_labels(np.ones((1, 10), np.float32), NAMES)
    assert [label.index for label in best] == list(range(TOP))


@pytest.mark.parametrize(
    "output",
    [
        np.zeros((2, 10), np.float32),
        np.zeros((1, 10), np.int64),
        np.zeros((10,), np.float32),
        np.zeros((1, 10, 1), np.float32),
        np.zeros((1, 0), np.float32),
    ],
    ids=["batch", "integers", "vector", "map", "no classes"],
)
def test_what_is_no_classifier_has_no_labels(output: np.ndarray) -> None:
    assert top_labels(output, NAMES) == ()


def test_without_names_the_index_stands_in() -> None:
    values = np.array([[0.0, 5.0, 1.0]], np.float32)
    assert [label.name for label in top_labels(values, ())] == ["1", "2", "0"]
    assert [label.name for label in top_labels(values, ("zero", "one"))] == ["one", "2", "zero"]


def test_an_answer_is_one_json_line_that_says_everything() -> None:
    answer = Answer(
        id="smile \u263a\nnew line.png",
        request_id="00" * 16,
        plan={"cut": "block5", "codec": "raw"},
        answered_by="cloud",
        total_s=0.1234567891,
        labels=(Label(3, "tench", 0.5),),
        bytes_up=10,
        bytes_down=20,
        stages_s={"head": 0.0123456789},
        native_s=0.0011111111,
    )
    stream = io.StringIO()
    write_answer(answer, stream)
    assert stream.getvalue().endswith("\n")
    assert stream.getvalue().count("\n") == 1
    assert json.loads(stream.getvalue()) == {
        "id": answer.id,
        "request_id": "00" * 16,
        "plan": {"cut": "block5", "codec": "raw"},
        "answered_by": "cloud",
        "total_s": 0.123457,
        "labels": [{"index": 3, "name": "tench", "score": 0.5}],
        "fallback": None,
        "error": None,
        "bytes_up": 10,
        "bytes_down": 20,
        "stages_s": {"head": 0.012346},
        "native_s": 0.001111,
        "confidence": None,
    }


def test_scores_that_are_no_numbers_still_make_valid_json() -> None:
    labels = top_labels(np.full((1, 4), np.nan, np.float32), NAMES)
    stream = io.StringIO()
    write_answer(Answer("x", "", {}, "edge", 0.1, labels), stream)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(stream.getvalue(), parse_constant=refuse)


def test_each_line_is_handed_on_at_once() -> None:
    class Counting(io.StringIO):
        flushes = 0

        def flush(self) -> None:
            self.flushes += 1

    stream = Counting()
    write_answer(Answer("x", "", {}, "edge", 0.1), stream)
    assert stream.flushes == 1
