"""tail(head(x)) equals model(x) at every cut, and a damaged part does not go unnoticed."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import choice, floats, model_of, weight, write_model
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from splitserve.artifact import load_artifact
from splitserve.split import (
    Recipe,
    choose_cuts,
    compare_cuts,
    find_cuts,
    load_graph,
    recipe_of,
    split_model,
)
from splitserve.split.command_verify import load_pictures
from splitserve.split.graph import view
from splitserve.split.verify import TOLERANCE, CutError, compare_artifact, relative_error
from splitserve.tensors import Array, Tensors


def picture_inputs(model: Path, folder: Path, *batches: int) -> list[Tensors]:
    graph = load_graph(model)
    preprocess = recipe_of(graph.model, "").preprocess
    assert preprocess is not None
    values = load_pictures(folder, preprocess, max(batches))
    return [{graph.inputs[0].name: np.concatenate(values[:batch])} for batch in batches]


def test_every_cut_of_lite0_recomposes_on_real_pictures(lite0: Path, pictures: Path) -> None:
    graph = load_graph(lite0)
    cuts = find_cuts(graph)
    errors = list(compare_cuts(graph, cuts, picture_inputs(lite0, pictures, 1, 3)))
    assert [(e.cut, e.batch) for e in errors] == [(c.tensor.name, b) for c in cuts for b in (1, 3)]
    assert [error for error in errors if not error.is_exact] == []
    # Fused kernels add in another order than separate ones: a few units in the last place.
    assert max(error.relative for error in errors) <= 1e-5


def test_segments_and_fused_heads_of_lite0_recompose(
    lite0: Path, lite0_artifact: Path, pictures: Path
) -> None:
    artifact = load_artifact(lite0_artifact)
    inputs = picture_inputs(lite0, pictures, 1)
    errors = list(compare_artifact(load_graph(lite0), artifact, inputs))
    heads = [f"fused head to {cut.name}" for cut in artifact.manifest.cuts if cut.fused_head]
    assert [error.cut for error in errors] == ["all segments", *heads]
    assert all(error.is_good for error in errors)


def damage(folder: Path, index: int) -> None:
    """Change the first weights of a segment by 1 %, and its hash with them."""
    manifest = json.loads((folder / "manifest.json").read_text())
    segment = manifest["segments"][index]
    model = onnx.load(folder / segment["file"])
    stored = model.graph.initializer[0]
    values = numpy_helper.to_array(stored) * np.float32(1.01)
    stored.CopyFrom(numpy_helper.from_array(values, stored.name))
    content = model.SerializeToString()
    (folder / segment["file"]).write_bytes(content)
    segment |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("index", [0, 1, 3])
def test_damaged_part_is_detected(
    tiny_model: Path, tiny_artifact: Path, pictures: Path, tmp_path: Path, index: int
) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(tiny_artifact, folder)
    inputs = picture_inputs(tiny_model, pictures, 1, 3)
    whole, artifact = load_graph(tiny_model), load_artifact(folder)
    assert all(error.is_good for error in compare_artifact(whole, artifact, inputs))
    damage(folder, index)
    errors = list(compare_artifact(whole, load_artifact(folder), inputs))
    segments = [error for error in errors if error.cut == "all segments"]
    assert [error.batch for error in segments] == [1, 3]
    assert not any(error.is_exact or error.is_good for error in segments)


def test_result_is_good_only_when_exact_and_within_tolerance() -> None:
    assert CutError("a", 1, is_exact=True, relative=TOLERANCE).is_good
    assert not CutError("a", 1, is_exact=False, relative=0.0).is_good
    assert not CutError("a", 1, is_exact=True, relative=2 * TOLERANCE).is_good
    assert not CutError("a", 1, is_exact=True, relative=float("nan")).is_good


def test_model_with_a_scalar_input_is_compared() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["a"]),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    graph = view(model_of(nodes, [floats("scale", []), floats("x", [2])], [floats("y", [2])]))
    tensors = {"scale": np.full((), 2, np.float32), "x": np.ones(2, np.float32)}
    assert all(error.is_good for error in compare_cuts(graph, find_cuts(graph), [tensors]))


def array(*values: float) -> Array:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("wanted", "got", "error"),
    [
        (array(1, -4), array(1, -4), 0.0),
        (array(1, -4), array(2, -4), 0.25),
        (array(0, 0), array(0, 3), 3.0),
        (array(1, 2), array(1), float("inf")),
        (array(), array(), 0.0),
        (array(np.nan, np.inf, 2), array(np.nan, np.inf, 1), 0.5),
        (array(np.inf, 2), array(1, 2), float("inf")),
        (array(1, 2), array(np.nan, 2), float("nan")),
        (np.array([-128, 1], np.int8), np.array([-128, 65], np.int8), 0.5),
        (np.array([True]), np.array([False]), 1.0),
    ],
)
def test_relative_error_is_the_difference_over_the_largest_magnitude(
    wanted: Array, got: Array, error: float
) -> None:
    assert relative_error(wanted, got) == pytest.approx(error, nan_ok=True)


def branching_net() -> onnx.ModelProto:
    """A net whose If takes a branch by the data, and reads a tensor from far before it."""
    nodes = [
        helper.make_node("Relu", ["x"], ["early"]),
        helper.make_node("Mul", ["early", "w"], ["middle"]),
        helper.make_node("ReduceSum", ["middle"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "limit"], ["flag"]),
        choice("chosen", "flag", ["early", "middle"], ["middle"]),
        helper.make_node("Neg", ["chosen"], ["late"]),
        helper.make_node("Exp", ["late"], ["y"]),
    ]
    weights = [
        weight("w", np.array([0.5, 2], np.float32)),
        numpy_helper.from_array(np.float32(1), "limit"),
    ]
    return model_of(nodes, [floats("x", [2])], [floats("y", [2])], weights)


@pytest.mark.parametrize("value", [-1.0, 3.0], ids=["else", "then"])
def test_a_net_with_an_if_recomposes_bit_for_bit_in_either_branch(
    tmp_path: Path, value: float
) -> None:
    path = write_model(branching_net(), tmp_path / "if.onnx")
    graph = load_graph(path)
    cuts = find_cuts(graph)
    assert [cut.tensor.name for cut in cuts] == ["early", "chosen", "late"]
    inputs = [{"x": np.array([value, value], np.float32)}]
    assert all(error.is_good for error in compare_cuts(graph, cuts, inputs))
    artifact = split_model(graph, cuts, Recipe(name="if"), path, tmp_path / "artifact")
    assert all(error.is_good for error in compare_artifact(graph, artifact, inputs))


class Noise(CalibrationDataReader):
    """Four seeded batches of noise for the quantiser."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        shape = (1, 3, 32, 32)
        self._batches = iter(
            [{"image": generator.standard_normal(shape).astype(np.float32)} for _ in range(4)]
        )

    def get_next(self) -> dict[str, Array] | None:
        return next(self._batches, None)


def test_a_quantised_net_is_cut_between_quantise_and_dequantise(
    tiny_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "quantised.onnx"
    quantize_static(str(tiny_model), str(path), Noise(), quant_format=QuantFormat.QDQ)
    graph = load_graph(path)
    cuts, chosen = find_cuts(graph), choose_cuts(graph)
    assert len(chosen) >= 2
    assert {cut.tensor.dtype for cut in chosen} <= {"uint8", "int8"}
    image = np.random.default_rng(1).standard_normal((3, 3, 32, 32)).astype(np.float32)
    inputs: list[Tensors] = [{"image": image[:1]}, {"image": image}]
    assert all(error.is_good for error in compare_cuts(graph, cuts, inputs))
    artifact = split_model(graph, chosen, Recipe(name="quantised"), path, tmp_path / "artifact")
    assert all(error.is_good for error in compare_artifact(graph, artifact, inputs))
