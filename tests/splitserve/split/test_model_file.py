"""Weights in files beside the model: read, hashed, refused when they cannot be trusted."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import floats, model_of, tiny_net, weight
from onnx import helper

from splitserve.artifact import load_artifact
from splitserve.cli import main
from splitserve.errors import GraphError
from splitserve.runtime import Graph, RuntimeOptions
from splitserve.split import Recipe, choose_cuts, compare_cuts, find_cuts, load_graph, split_model
from splitserve.split.graph import view
from splitserve.split.model_file import model_sha256, serialise, without_weights, write_beside
from splitserve.split.verify import compare_artifact

PLAIN = RuntimeOptions(threads=1, optimise=False)
IMAGE = {"image": np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)}


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """tiny_net with its weights in model/sub/w.bin."""
    path = tmp_path / "model" / "model.onnx"
    (path.parent / "sub").mkdir(parents=True)
    model = tiny_net()
    onnx.save(model, path, save_as_external_data=True, location="sub/w.bin", size_threshold=0)
    return path


def edit_location(path: Path, key: str, value: str) -> None:
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == key:
            entry.value = value
    path.write_bytes(model.SerializeToString())


def test_model_with_external_weights_splits_and_recomposes(outside: Path, tmp_path: Path) -> None:
    graph = load_graph(outside)
    cuts = find_cuts(graph)
    assert len(cuts) == 8
    assert all(error.is_good for error in compare_cuts(graph, cuts, [IMAGE]))
    whole = Graph(outside, PLAIN).run(IMAGE)["logits"]
    assert np.array_equal(Graph(graph.model.SerializeToString(), PLAIN).run(IMAGE)["logits"], whole)
    split_model(graph, choose_cuts(graph), Recipe(name="t"), outside, tmp_path / "artifact")
    artifact = load_artifact(tmp_path / "artifact")
    shutil.rmtree(outside.parent)  # the artifact needs none of it
    assert all(error.is_good for error in compare_artifact(graph, artifact, [IMAGE]))


def test_commands_take_external_weights(outside: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "artifact")
    assert main(["cuts", str(outside)]) == 0
    assert main(["split", str(outside), "-o", target]) == 0
    assert main(["verify", target, "--model", str(outside)]) == 0


def test_hash_of_a_model_in_one_file_is_the_files(tiny_model: Path) -> None:
    assert model_sha256(tiny_model) == hashlib.sha256(tiny_model.read_bytes()).hexdigest()


def test_hash_covers_the_files_beside_the_model(outside: Path) -> None:
    digests = [
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (outside, outside.parent / "sub" / "w.bin")
    ]
    lines = "".join(f"{digest}\n" for digest in digests)
    assert model_sha256(outside) == hashlib.sha256(lines.encode()).hexdigest()
    weights = outside.parent / "sub" / "w.bin"
    content = bytearray(weights.read_bytes())
    content[0] ^= 1
    old = model_sha256(outside)
    weights.write_bytes(content)
    assert model_sha256(outside) != old


def test_missing_weights_are_refused(outside: Path) -> None:
    (outside.parent / "sub" / "w.bin").unlink()
    with pytest.raises(GraphError, match=r"stem\.conv\.weight.*'sub/w\.bin', which is missing"):
        load_graph(outside)


@pytest.mark.parametrize("size", [0, 100, 4000])
def test_truncated_weights_are_refused(outside: Path, size: int) -> None:
    weights = outside.parent / "sub" / "w.bin"
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(GraphError, match=rf"it has {size} bytes: it is cut short"):
        load_graph(outside)


def test_weights_shorter_than_their_dims_are_refused(outside: Path) -> None:
    edit_location(outside, "length", "4")
    model = onnx.load(outside, load_external_data=False)
    model.graph.initializer[0].dims[0] = 10_000_000
    outside.write_bytes(model.SerializeToString())
    with pytest.raises(GraphError, match="it is cut short"):
        load_graph(outside)


@pytest.mark.parametrize("place", ["../w.bin", "sub/../../w.bin", "{root}/w.bin", ""])
def test_weights_outside_the_folder_are_refused(outside: Path, tmp_path: Path, place: str) -> None:
    shutil.copy(outside.parent / "sub" / "w.bin", tmp_path / "w.bin")
    edit_location(outside, "location", place.format(root=tmp_path))
    with pytest.raises(GraphError, match="outside the model's folder"):
        load_graph(outside)


def test_link_that_leads_outside_the_folder_is_refused(outside: Path, tmp_path: Path) -> None:
    weights = outside.parent / "sub" / "w.bin"
    weights.rename(tmp_path / "w.bin")
    weights.symlink_to(tmp_path / "w.bin")
    with pytest.raises(GraphError, match="outside the model's folder"):
        load_graph(outside)


@pytest.mark.parametrize(
    ("key", "value"), [("offset", "-1"), ("length", "x"), ("offset", "9" * 20)]
)
def test_senseless_numbers_are_refused(outside: Path, key: str, value: str) -> None:
    edit_location(outside, key, value)
    with pytest.raises(GraphError):
        load_graph(outside)


@pytest.mark.parametrize("kind", [0, 99])
def test_weights_of_unknown_type_are_refused(outside: Path, kind: int) -> None:
    model = onnx.load(outside, load_external_data=False)
    model.graph.initializer[0].data_type = kind
    outside.write_bytes(model.SerializeToString())
    with pytest.raises(GraphError, match=rf"tensor 'stem\.conv\.weight' is of unknown type {kind}"):
        load_graph(outside)


def test_weights_written_beside_a_model_are_its_own(tmp_path: Path) -> None:
    model = tiny_net()
    before = model.SerializeToString()
    path = write_beside(model, tmp_path)
    assert model.SerializeToString() == before
    assert path.stat().st_size < len(before)
    onnx.checker.check_model(str(path))
    whole = Graph(before, PLAIN).run(IMAGE)["logits"]
    assert np.array_equal(Graph(path, PLAIN).run(IMAGE)["logits"], whole)


def test_copy_without_weights_keeps_small_ones_and_all_shapes() -> None:
    light = without_weights(tiny_net())
    sizes = {value.name: len(value.raw_data) for value in light.graph.initializer}
    assert sizes["stage.conv.weight"] == 0
    assert sizes["stem.conv.bias"] == 32
    assert [list(value.dims) for value in light.graph.initializer] == [
        list(value.dims) for value in tiny_net().graph.initializer
    ]


def huge_net() -> onnx.ModelProto:
    """Three matrix products with 0.8 GB of weights each."""
    side = 14_142
    values = np.zeros((side, side), np.float32)
    np.fill_diagonal(values, 2)
    nodes = [
        helper.make_node("MatMul", [source, f"w{index}"], [result])
        for index, (source, result) in enumerate([("x", "a"), ("a", "b"), ("b", "y")])
    ]
    ends = [floats("x", ["n", side])], [floats("y", ["n", side])]
    return model_of(nodes, *ends, [weight(f"w{index}", values) for index in range(3)])


@pytest.mark.slow
@pytest.mark.timeout(900)  # 5 GB are written and read several times
def test_model_over_two_gibibytes_splits_into_parts_below(tmp_path: Path) -> None:
    path = write_beside(huge_net(), tmp_path)
    graph = load_graph(path)
    cuts = find_cuts(graph)
    assert [cut.name for cut in cuts] == ["a", "b"]
    x = {"x": np.ones((1, 14_142), np.float32)}
    assert all(error.is_good for error in compare_cuts(graph, cuts, [x]))
    artifact = split_model(graph, choose_cuts(graph, ["a"]), Recipe(name="h"), path, tmp_path / "a")
    assert [segment.bytes > 2**29 for segment in artifact.manifest.segments] == [True, True]
    with pytest.raises(GraphError, match=r"over the 2 GiB that one ONNX file can hold.*--cuts"):
        split_model(graph, [], Recipe(name="h"), path, tmp_path / "whole")


@pytest.mark.slow
def test_graph_over_two_gibibytes_is_refused_by_name() -> None:
    model = huge_net()
    with pytest.raises(GraphError, match="the part is over the 2 GiB"):
        serialise(model, "the part")
    for index, value in enumerate(model.graph.initializer):
        node = helper.make_node("Constant", [], [value.name])
        node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(value)
        model.graph.node.insert(index, node)
    del model.graph.initializer[:]
    with pytest.raises(GraphError, match="over 2 GiB lie in local functions, Constant nodes"):
        view(model)
