"""The exit's ONNX graph against the same sums in numpy."""

import numpy as np
import onnx
import pytest

from splitserve.calibrate.exit_graph import (
    FEATURES,
    PROBABILITIES,
    Classifier,
    build_exit,
    build_features,
)
from splitserve.errors import UsageError
from splitserve.runtime import Graph, RuntimeOptions
from splitserve.tensors import DTYPES, Array, Tensors, TensorSpec

OPTIONS = RuntimeOptions(threads=1)


def spec(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def values_of(*specs: TensorSpec) -> dict[str, Array]:
    generator = np.random.default_rng(0)
    return {s.name: generator.standard_normal(s.concrete(1)).astype(DTYPES[s.dtype]) for s in specs}


def features_of(specs: list[TensorSpec], tensors: Tensors, *, channels_last: bool = False) -> Array:
    graph = Graph(build_features(specs, channels_last=channels_last), OPTIONS)
    return graph.run(tensors)[FEATURES]


def by_hand(maps: Array) -> Array:
    """Features of (channels, height, width)."""
    (_, height, width), parts = maps.shape, []
    for rows in (slice(0, (height + 1) // 2), slice(height // 2, None)):
        parts += [
            maps[:, rows, columns].mean((1, 2))
            for columns in (slice(0, (width + 1) // 2), slice(width // 2, None))
        ]
    quarters = np.stack(parts, axis=1).reshape(-1)
    return np.concatenate([maps.mean((1, 2)), maps.std((1, 2)), maps.max((1, 2)), quarters])


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (2, 3), (6, 9)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_maps_give_mean_deviation_maximum_and_quarters(size: tuple[int, int], channels_last: bool):
    shape = ("batch", *size, 4) if channels_last else ("batch", 4, *size)
    egress = [spec("x", *shape)]
    tensors = values_of(*egress)
    (maps,) = np.moveaxis(tensors["x"], -1, 1) if channels_last else tensors["x"]
    got = features_of(egress, tensors, channels_last=channels_last)
    assert got.shape == (1, 4 * 7)
    np.testing.assert_allclose(got[0], by_hand(maps.astype(float)), rtol=1e-5, atol=1e-6)


def test_a_flat_tensor_is_taken_as_it_is_and_several_follow_one_another():
    egress = [spec("flat", "n", 5), spec("maps", "n", 2, 4, 4, dtype="float16"), spec("last", 1, 3)]
    tensors = values_of(*egress)
    got = features_of(egress, tensors)
    assert got.dtype == np.float32
    assert got.shape == (1, 5 + 2 * 7 + 3)
    np.testing.assert_array_equal(got[0, :5], tensors["flat"][0])
    np.testing.assert_array_equal(got[0, -3:], tensors["last"][0])


def test_tokens_are_pooled_over_their_number_which_may_be_free():
    egress = [spec("tokens", "n", "length", 6)]
    tensors = {"tokens": values_of(spec("tokens", 1, 9, 6))["tokens"]}
    values = tensors["tokens"][0].astype(float)
    expected = np.concatenate([values.mean(0), values.std(0), values.max(0)])
    np.testing.assert_allclose(features_of(egress, tensors)[0], expected, rtol=1e-5, atol=1e-6)


def test_free_height_and_width_do_without_quarters():
    tensors = values_of(spec("x", 1, 4, 6, 6))
    assert features_of([spec("x", "n", 4, "h", "w")], tensors).shape == (1, 12)


def test_what_has_no_features_is_left_out_and_alone_refused():
    words, flat = spec("words", "n", 7, dtype="int64"), spec("flat", "n", 5)
    assert features_of([words, flat], values_of(words, flat)).shape == (1, 5)
    for bad in (words, spec("free", "n", "k"), spec("one", 9), spec("two", 2, 5)):
        with pytest.raises(UsageError, match=f"{bad.name} have none"):
            build_features([bad], channels_last=False)


def test_the_exit_is_a_softmax_of_scores_over_the_temperature():
    egress = [spec("flat", "n", 5)]
    generator = np.random.default_rng(1)
    classifier = Classifier(generator.standard_normal((5, 3)), generator.standard_normal(3), 2.5)
    content = build_exit(egress, classifier, channels_last=False)
    onnx.checker.check_model(onnx.load_from_string(content))
    tensors = values_of(*egress)
    scores = (tensors["flat"][0] @ classifier.weight + classifier.bias) / 2.5
    expected = np.exp(scores) / np.exp(scores).sum()
    got = Graph(content, OPTIONS).run(tensors)[PROBABILITIES]
    assert got.shape == (1, 3)
    np.testing.assert_allclose(got[0], expected, rtol=1e-5)
    assert content == build_exit(egress, classifier, channels_last=False)
