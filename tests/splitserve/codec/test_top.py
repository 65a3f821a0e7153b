"""`top`: the best classes come back exactly, softmax of them too; hostile payloads are refused."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitserve.codec import RawCodec, TopCodec, reply_codec
from splitserve.errors import CodecError
from splitserve.tensors import Array

TOP = TopCodec()
CLASSES = 1000


def scores(seed: int = 0, spread: float = 3.0) -> Array:
    return np.random.default_rng(seed).normal(0, spread, (1, CLASSES)).astype(np.float32)


def softmax(values: Array) -> Array:
    powers = np.exp(values.astype(np.float64) - values.max())
    return powers / powers.sum()


def travel(tensor: Array) -> Array:
    payload = memoryview(TOP.encode(tensor))
    return TOP.decode(payload, tensor.shape, str(tensor.dtype))


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.01, 1.0, 30.0]))
def test_the_best_classes_come_back_exactly_and_in_order(seed: int, spread: float):
    want = scores(seed, spread)
    got = travel(want)
    best = np.argsort(-want[0], kind="stable")[:10]
    assert np.argsort(-got[0], kind="stable")[:10].tolist() == best.tolist()
    assert got[0, best].tolist() == want[0, best].tolist()
    assert np.allclose(softmax(got)[0, best], softmax(want)[0, best], rtol=1e-5)


def test_probabilities_still_sum_to_one():
    want = softmax(scores()).astype(np.float32)
    got = travel(want)
    assert got.min() >= 0
    assert got.sum(dtype=np.float64) == pytest.approx(1, abs=1e-5)


def test_a_thousand_classes_take_85_bytes():
    assert len(TOP.encode(scores())) == 85


@pytest.mark.parametrize(
    "tensor",
    [
        np.zeros((1, 20), np.float32),
        np.zeros((2, CLASSES), np.float32),
        np.zeros((1, CLASSES), np.float64),
        np.zeros((1, CLASSES, 1), np.float32),
        np.full((1, CLASSES), np.nan, np.float32),
        np.where(np.arange(CLASSES) == 3, -np.inf, 0).astype(np.float32)[None],
        np.arange(CLASSES, dtype=np.int64)[None],
    ],
    ids=["few", "batch", "float64", "dims", "nan", "infinite", "integers"],
)
def test_what_is_no_row_of_scores_is_stored_whole(tensor: Array):
    assert TOP.encode(tensor) == RawCodec(exact=True).encode(tensor)
    assert travel(tensor).tobytes() == tensor.tobytes()


def payload(indices: list[int], values: list[float], rest: float = 0.0) -> bytes:
    entries = b"".join(struct.pack("<If", i, v) for i, v in zip(indices, values, strict=True))
    return bytes((len(indices),)) + struct.pack("<f", rest) + entries


def test_decode_takes_any_number_of_classes():
    got = TOP.decode(memoryview(payload([2, 0], [5.0, 4.0], -1.0)), (1, 4), "float32")
    assert got.tolist() == [[4.0, -1.0, 5.0, -1.0]]


@pytest.mark.parametrize(
    ("content", "shape", "dtype"),
    [
        (b"", (1, 4), "float32"),
        (payload([4], [1.0]), (1, 4), "float32"),
        (payload([1, 1], [1.0, 1.0]), (1, 4), "float32"),
        (payload([1], [1.0])[:-1], (1, 4), "float32"),
        (payload([1], [1.0]) + b"\0", (1, 4), "float32"),
        (payload([1], [float("nan")]), (1, 4), "float32"),
        (payload([1], [1.0], float("inf")), (1, 4), "float32"),
        (payload([1], [1.0]), (1, 4), "float64"),
        (payload([1], [1.0]), (2, 4), "float32"),
        (payload([1], [1.0]), (4,), "float32"),
        (payload([0], [1.0]), (1, 0), "float32"),
    ],
)
def test_decode_refuses_what_is_no_payload(content: bytes, shape: tuple[int, ...], dtype: str):
    with pytest.raises(CodecError):
        TOP.decode(memoryview(content), shape, dtype)


@given(st.binary(max_size=120), st.sampled_from([(1, 4), (1, 12), (0, 3), (1, 1)]))
def test_decode_is_total(content: bytes, shape: tuple[int, ...]):
    try:
        got = TOP.decode(memoryview(content), shape, "float32")
    except CodecError:
        return
    assert got.shape == shape
    assert got.dtype == np.float32


def test_replies_have_two_codecs():
    assert isinstance(reply_codec(6), TopCodec)
    assert isinstance(reply_codec(1), RawCodec)
    with pytest.raises(CodecError, match="codec number 3"):
        reply_codec(3)
