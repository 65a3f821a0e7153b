"""Extracted parts against onnx's own extractor and onnx.compose."""

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import TINY_RECIPE, floats, model_of, random_dag, tiny_net, weight, write_tiny
from onnx import helper

from splitserve.artifact import Preprocess, load_artifact
from splitserve.errors import GraphError, UsageError
from splitserve.runtime import Graph, RuntimeOptions
from splitserve.split import Recipe, extract, find_cuts, load_graph, split_model
from splitserve.split.extract import FUSED_HEAD_SHARE
from splitserve.split.graph import view
from splitserve.tensors import Array, Tensors

PLAIN = RuntimeOptions(threads=1, optimise=False)


def run(model: onnx.ModelProto, tensors: Tensors) -> dict[str, Array]:
    return Graph(model.SerializeToString(), PLAIN).run(tensors)


def image(batch: int) -> Tensors:
    shape = (batch, 3, 32, 32)
    return {"image": np.random.default_rng(5).standard_normal(shape).astype(np.float32)}


def halves(model: onnx.ModelProto, cut: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    graph = view(model)
    border = (graph.specs[cut],)
    return extract(graph, graph.inputs, border), extract(graph, border, graph.outputs)


@pytest.mark.parametrize("cut", ["stem", "block.sum", "stage", "pool"])
def test_parts_are_valid_models_with_a_free_batch(cut: str) -> None:
    for part in halves(tiny_net(), cut):
        onnx.checker.check_model(part, full_check=True)
        ends = (part.graph.input[0], part.graph.output[0])
        assert [end.type.tensor_type.shape.dim[0].dim_param for end in ends] == ["batch"] * 2


@pytest.mark.parametrize("cut", ["stem", "block.sum", "stage", "pool"])
def test_parts_hold_what_onnxs_own_extractor_takes(cut: str) -> None:
    inferred = onnx.shape_inference.infer_shapes(tiny_net())
    extractor = onnx.utils.Extractor(inferred)
    for part, ends in zip(
        halves(tiny_net(), cut), [(["image"], [cut]), ([cut], ["logits"])], strict=True
    ):
        other = extractor.extract_model(*ends)
        assert list(part.graph.node) == list(other.graph.node)
        assert {w.name for w in part.graph.initializer} == {w.name for w in other.graph.initializer}


@pytest.mark.parametrize("cut", ["stem", "block", "mean"])
def test_parts_merged_again_by_onnx_compute_what_the_whole_does(cut: str) -> None:
    head, tail = halves(tiny_net(), cut)
    merged = onnx.compose.merge_models(head, tail, [(cut, cut)], prefix2="b/")
    onnx.checker.check_model(merged)
    whole = run(tiny_net(), image(2))["logits"]
    assert np.array_equal(run(merged, image(2))["b/logits"], whole)


@pytest.mark.parametrize("seed", range(0, 200, 4))
def test_every_cut_of_a_random_graph_recomposes_bit_for_bit(seed: int) -> None:
    model = random_dag(seed)
    generator = np.random.default_rng(seed)
    inputs = {v.name: generator.standard_normal(2).astype(np.float32) for v in model.graph.input}
    whole = run(model, inputs)
    for cut in find_cuts(view(model)):
        head, tail = halves(model, cut.tensor.name)
        onnx.checker.check_model(head)
        onnx.checker.check_model(tail)
        got = run(tail, run(head, inputs))
        assert all(np.array_equal(got[name], value) for name, value in whole.items())


def shared_weight_model(ir_version: int = 8) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Mul", ["w", "w"], ["square"]),
        helper.make_node("MatMul", ["x", "square"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "square"], ["y"]),
    ]
    inputs = [floats("x", ["n", 2])] + ([floats("w", [2, 2])] if ir_version < 4 else [])
    values = weight("w", np.array([[1, 2], [3, 4]], np.float32))
    ends = inputs, [floats("y", ["n", 2])]
    return model_of(nodes, *ends, [values], opset=11, ir_version=ir_version)


@pytest.mark.parametrize("ir_version", [3, 8])
def test_constants_that_both_sides_read_are_in_both(ir_version: int) -> None:
    model = shared_weight_model(ir_version)
    head, tail = halves(model, "b")
    for part in (head, tail):
        onnx.checker.check_model(part, full_check=True)
        assert [w.name for w in part.graph.initializer] == ["w"]
        assert part.graph.node[0].output == ["square"]
    x = np.array([[1, -1]], np.float32)
    assert np.array_equal(run(tail, run(head, {"x": x}))["y"], run(model, {"x": x})["y"])


def test_part_says_which_tensor_it_lacks() -> None:
    graph = view(tiny_net())
    with pytest.raises(GraphError, match=r"the part also needs image$"):
        extract(graph, (graph.specs["block.b"],), graph.outputs)


def test_part_leaves_dead_nodes_and_unread_weights_behind() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Add", ["x", "w"], ["unread"]),
    ]
    graph = view(
        model_of(
            nodes,
            [floats("x", [2])],
            [floats("y", [2])],
            [weight("w", np.zeros(2, np.float32))],
        )
    )
    part = extract(graph, graph.inputs, graph.outputs)
    assert [node.op_type for node in part.graph.node] == ["Relu"]
    assert not part.graph.initializer


def test_same_model_gives_the_same_artifact_byte_for_byte(tmp_path: Path) -> None:
    folders = []
    for name in ("one", "two"):
        graph = load_graph(write_tiny(tmp_path / f"{name}.onnx"))
        target, cuts = tmp_path / name, find_cuts(graph)
        split_model(graph, cuts, TINY_RECIPE, tmp_path / f"{name}.onnx", target)
        folders.append({path.name: path.read_bytes() for path in target.iterdir()})
    assert folders[0] == folders[1]


def test_manifest_describes_the_files_and_the_model(tiny_model: Path, tiny_artifact: Path) -> None:
    artifact = load_artifact(tiny_artifact)
    manifest = artifact.manifest
    assert manifest.positions == ("input", "stem", "stage", "mean", "output")
    assert manifest.model.sha256 == hashlib.sha256(tiny_model.read_bytes()).hexdigest()
    assert manifest.preprocess == TINY_RECIPE.preprocess
    assert manifest.labels == TINY_RECIPE.labels
    assert sum(segment.macs for segment in manifest.segments) == manifest.model.macs
    assert [cut.macs_share for cut in manifest.cuts] == sorted(c.macs_share for c in manifest.cuts)
    named = {segment.file for segment in manifest.segments}
    named |= {cut.fused_head.file for cut in manifest.cuts if cut.fused_head}
    assert {path.name for path in tiny_artifact.iterdir()} == {"manifest.json", *named}


def test_fused_head_is_stored_only_where_it_is_small_and_saves_a_border(
    lite0_artifact: Path,
) -> None:
    manifest = load_artifact(lite0_artifact).manifest
    limit = FUSED_HEAD_SHARE * sum(segment.bytes for segment in manifest.segments)
    assert manifest.cuts[0].fused_head is None
    heads = [cut.fused_head for cut in manifest.cuts if cut.fused_head]
    assert heads
    assert all(head.bytes <= limit for head in heads)
    assert manifest.cuts[-1].fused_head is None


def test_fused_head_does_the_work_of_its_segments(lite0_artifact: Path) -> None:
    manifest = load_artifact(lite0_artifact).manifest
    for position, cut in enumerate(manifest.cuts, 1):
        if cut.fused_head:
            parts = manifest.segments[:position]
            assert cut.fused_head.macs == sum(segment.macs for segment in parts)


def test_model_without_cuts_becomes_one_segment(tiny_model: Path, tmp_path: Path) -> None:
    artifact = split_model(load_graph(tiny_model), [], TINY_RECIPE, tiny_model, tmp_path / "a")
    assert artifact.manifest.positions == ("input", "output")
    assert len(artifact.manifest.segments) == 1


def test_the_same_cut_twice_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    graph = load_graph(tiny_model)
    cut = find_cuts(graph)[1]
    with pytest.raises(UsageError, match="nothing is left to compute between two cuts: stem cross"):
        split_model(graph, [cut, cut], TINY_RECIPE, tiny_model, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_recipe_for_another_input_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    wrong = Preprocess(resize_short_side=256, crop=(224, 224), mean=(0.0,) * 3, std=(1.0,) * 3)
    recipe = Recipe(name="other", preprocess=wrong)
    with pytest.raises(UsageError, match=r"recipe 'other'.*image: shape \[1, 3, 224, 224\]"):
        split_model(load_graph(tiny_model), [], recipe, tiny_model, tmp_path / "a")
    assert not (tmp_path / "a").exists()
