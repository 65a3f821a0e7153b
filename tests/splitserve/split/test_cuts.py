"""Single-tensor cuts against their definition, checked by brute force."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import choice, floats, model_of, random_dag, read_by, reordered, tiny_net
from onnx import helper, numpy_helper

from splitserve.split import find_cuts, load_graph, mark_fused
from splitserve.split.graph import view


def reached(model: onnx.ModelProto, starts: set[str], without: str = "") -> set[str]:
    """Tensors that depend on `starts` by a path around `without`."""
    seen = starts - {without}
    while True:
        new = {
            name
            for node in model.graph.node
            if seen.intersection(read_by(node))
            for name in node.output
        } - seen - {without}  # fmt: skip
        if not new:
            return seen
        seen |= new


def cuts_by_definition(model: onnx.ModelProto) -> set[str]:
    """Tensors on a way from inputs to outputs without which no way is left."""
    inputs = {value.name for value in model.graph.input}
    outputs = {value.name for value in model.graph.output}
    return {
        name
        for name in reached(model, inputs) - inputs - outputs
        if outputs & reached(model, {name}) and not outputs & reached(model, inputs, name)
    }


def names(model: onnx.ModelProto) -> list[str]:
    return [cut.tensor.name for cut in find_cuts(view(model))]


@pytest.mark.parametrize("start", range(0, 1000, 50))
def test_cuts_equal_the_definition_whatever_the_order_of_the_nodes(start: int) -> None:
    for seed in range(start, start + 50):
        model = random_dag(seed)
        expected = cuts_by_definition(model)
        orders = [model, *(reordered(model, seed * 10 + index) for index in range(3))]
        found = [names(order) for order in orders]
        assert [set(cuts) for cuts in found] == [expected] * len(orders)
        assert all(cuts == found[0] for cuts in found)


def test_random_graphs_are_worth_testing_on() -> None:
    models = [random_dag(seed) for seed in range(200)]
    assert sum(bool(cuts_by_definition(model)) for model in models) > 50
    assert sum(any(node.is_dead for node in view(model).nodes) for model in models) > 50
    assert sum(len(model.graph.input) > 1 for model in models) > 50
    assert sum(len(model.graph.output) > 1 for model in models) > 50
    assert sum(any(node.op_type == "If" for node in model.graph.node) for model in models) > 50


@pytest.mark.parametrize("seed", range(200))
def test_what_lies_before_a_cut_is_what_its_tensor_depends_on(seed: int) -> None:
    graph = view(random_dag(seed))
    for cut in find_cuts(graph):
        needed = {cut.tensor.name}
        for index in reversed(range(len(graph.nodes))):
            node = graph.nodes[index]
            if node.is_constant or node.is_dead:
                continue
            assert bool(needed.intersection(node.outputs)) == (index in cut.nodes)
            if index in cut.nodes:
                needed.update(node.inputs)


def test_share_of_macs_grows_along_the_cuts() -> None:
    cuts = find_cuts(view(tiny_net()))
    assert [cut.tensor.name for cut in cuts] == [
        "stem.conv", "stem", "block.sum", "block", "stage.conv", "stage", "mean", "pool",
    ]  # fmt: skip
    total = 55_296 + 2 * 147_456 + 73_728 + 160
    assert cuts[1].macs_share == pytest.approx(55_296 / total)
    assert cuts[3].macs_share == pytest.approx((55_296 + 2 * 147_456) / total)
    assert cuts[-1].macs_share == pytest.approx((total - 160) / total)


def test_dead_reader_at_the_end_hides_no_cut() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Relu", ["b"], ["y"]),
        helper.make_node("Neg", ["x"], ["unread"]),
    ]
    assert names(model_of(nodes, [floats("x", [4])], [floats("y", [4])])) == ["a", "b"]


def test_random_numbers_that_both_sides_read_are_not_drawn_twice() -> None:
    nodes = [
        helper.make_node("RandomNormal", [], ["noise"], shape=[4]),
        helper.make_node("Add", ["x", "noise"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Sub", ["b", "noise"], ["c"]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    assert names(model_of(nodes, [floats("x", [4])], [floats("y", [4])])) == ["c"]


@pytest.mark.parametrize("name", ["input", "output"])
def test_tensor_named_like_an_end_position_is_no_cut(name: str) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], [name]),
        helper.make_node("Neg", [name], ["b"]),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    assert names(model_of(nodes, [floats("x", [4])], [floats("y", [4])])) == ["b"]


def test_tensor_that_is_an_output_and_read_again_is_no_cut() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Neg", ["a"], ["y"])]
    assert names(model_of(nodes, [floats("x", [4])], [floats("a", [4]), floats("y", [4])])) == []


def test_what_the_runtime_fuses_away_is_marked() -> None:
    graph = view(tiny_net())
    marked = {cut.tensor.name: cut.is_fused for cut in mark_fused(graph, find_cuts(graph))}
    assert marked == {
        "stem.conv": True, "stem": False, "block.sum": False, "block": False,
        "stage.conv": True, "stage": False, "mean": False, "pool": False,
    }  # fmt: skip


def test_cut_that_nobody_looked_at_is_not_marked() -> None:
    assert {cut.is_fused for cut in find_cuts(view(tiny_net()))} == {None}


def test_cuts_of_lite0_are_its_blocks(lite0: Path) -> None:
    graph = load_graph(lite0)
    cuts = {cut.tensor.name: cut for cut in mark_fused(graph, find_cuts(graph))}
    assert {"stem", *(f"block{index}" for index in range(16)), "head", "pool"} <= set(cuts)
    assert not {"block2.expand", "block2.project", "block7.depthwise"} & set(cuts)
    assert cuts["block5"].tensor.shape == ("batch", 80, 14, 14)
    assert cuts["block5"].macs_share == pytest.approx(0.326, abs=5e-4)
    assert cuts["stem.conv"].is_fused
    assert not cuts["stem"].is_fused


def test_a_tensor_that_a_branch_captures_crosses_the_cuts_before_it() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        choice("d", "flag", ["a"], ["c"]),
        helper.make_node("Relu", ["d"], ["y"]),
    ]
    flag = numpy_helper.from_array(np.array(True), "flag")
    model = model_of(nodes, [floats("x", [2])], [floats("y", [2])], [flag])
    assert names(model) == ["a", "d"]  # at b and at c, `a` would have to travel too


def test_captures_of_nested_branches_count() -> None:
    inner = choice("inner", "flag", ["a"], ["b"])
    body = helper.make_graph([inner], "outer", [], [floats("inner", [2])])
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("If", ["flag"], ["c"], then_branch=body, else_branch=body),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    flag = numpy_helper.from_array(np.array(True), "flag")
    model = model_of(nodes, [floats("x", [2])], [floats("y", [2])], [flag])
    assert names(model) == ["a", "c"]
    assert set(view(model).nodes[2].inputs) == {"flag", "a", "b"}
