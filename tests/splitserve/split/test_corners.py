"""Graphs at the edge of what ONNX allows: they work bit for bit, or say what is wrong."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import floats, model_of, weight, write_model
from onnx import helper

from splitserve.artifact import load_artifact
from splitserve.errors import GraphError
from splitserve.split import Recipe, compare_cuts, find_cuts, load_graph, split_model
from splitserve.split.verify import compare_artifact

X, Y, Z, U = (floats(name, ["n", 4]) for name in "xyzu")
W = floats("w", [4])
ONES = weight("w", np.ones(4, np.float32))


def node(op: str, inputs: str, output: str) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), output.split())


def relus(*names: str) -> list[onnx.NodeProto]:
    return [node("Relu", a, b) for a, b in itertools.pairwise(names)]


Values = Sequence[onnx.ValueInfoProto]
CORNERS: dict[str, tuple[list[onnx.NodeProto], Values, Values, list[str]]] = {
    "two inputs, two outputs": (
        [node("Add", "x u", "a"), *relus("a", "b"), node("Neg", "b", "y"), node("Abs", "b", "z")],
        [X, U], [Y, Z], ["a", "b"],
    ),
    "initialiser among the inputs": (
        [*relus("x", "a"), node("Add", "a w", "b"), node("Neg", "b", "y")],
        [X, W], [Y], ["a", "b"],
    ),
    "outputs by Identity": (
        [*relus("x", "a"), node("Neg", "a", "b"), node("Identity", "b", "y"),
         node("Identity", "b", "z")],
        [X], [Y, Z], ["a", "b"],
    ),
    "an output that is read again": (
        [*relus("x", "a"), node("Neg", "a", "z"), node("Abs", "z", "y")], [X], [Y, Z], ["a"],
    ),
    "an input that is an output": ([*relus("x", "a"), node("Neg", "a", "y")], [X], [Y, X], []),
    "an input that nothing reads": ([*relus("x", "a", "b", "y")], [X, U], [Y], ["a", "b"]),
    "an output of weights alone": (
        [*relus("x", "a", "y"), node("Neg", "w", "c")], [X], [Y, floats("c", [4])], ["a"],
    ),
    "a weight that is an output": ([*relus("x", "a", "y")], [X], [Y, W], ["a"]),
    "an output that no input reaches": (
        [*relus("x", "a"), node("Neg", "w", "c")], [X], [floats("c", [4])], [],
    ),
    "an optional output left out": (
        [node("Dropout", "x", "a mask"), *relus("a", "y")], [X], [Y], ["a"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
@pytest.mark.parametrize("name", CORNERS)
def test_corner_recomposes_bit_for_bit(tmp_path: Path, name: str, opset: int) -> None:
    nodes, inputs, outputs, names = CORNERS[name]
    path = write_model(model_of(nodes, inputs, outputs, [ONES], opset), tmp_path / "model.onnx")
    graph = load_graph(path)
    cuts = find_cuts(graph)
    assert [cut.name for cut in cuts] == names
    generator = np.random.default_rng(0)
    feeds = [
        {
            spec.name: generator.standard_normal(spec.concrete(batch)).astype(np.float32)
            for spec in graph.inputs
        }
        for batch in (1, 3)
    ]
    assert all(error.is_good for error in compare_cuts(graph, cuts, feeds))
    split_model(graph, cuts, Recipe(name="corner"), path, tmp_path / "artifact")
    artifact = load_artifact(tmp_path / "artifact")
    assert all(error.is_good for error in compare_artifact(graph, artifact, feeds))


@pytest.mark.parametrize(
    ("nodes", "inputs", "outputs", "reason"),
    [
        ([], [X], [X], "no node"),
        (relus("x", "y"), [X], [], "no output"),
        (relus("x", "y"), [X], [Y, Y], "output 'y' is listed 2 times"),
        (relus("x", "y"), [X, X], [Y], "'x' has been used as graph input names multiple times"),
        (relus("v", "y"), [X], [Y], "input 'v' of node"),
        ([*relus("x", "y"), *relus("x", "y")], [X], [Y], "'y' has been used as output names"),
        (relus("w", "y"), [], [W], "no input"),
    ],
    ids=[
        "no node",
        "no output",
        "output twice",
        "input twice",
        "unmade input",
        "made twice",
        "no input",
    ],
)
def test_corner_is_refused_with_its_reason(
    tmp_path: Path, nodes: list[onnx.NodeProto], inputs: Values, outputs: Values, reason: str
) -> None:
    path = write_model(model_of(nodes, inputs, outputs, [ONES]), tmp_path / "model.onnx")
    with pytest.raises(GraphError, match=reason):
        load_graph(path)


def test_old_opset_names_the_command_that_raises_it(tmp_path: Path) -> None:
    path = write_model(model_of(relus("x", "y"), [X], [Y], opset=9), tmp_path / "old.onnx")
    with pytest.raises(GraphError, match=r'opset 9.*python -c "(.*)"') as caught:
        load_graph(path)
    command = str(caught.value).partition('python -c "')[2].rstrip('"')
    raised = tmp_path / "raised.onnx"
    exec(command.replace("'raised.onnx'", repr(str(raised))))  # noqa: S102  # our own message
    assert load_graph(raised).opset == 13
