"""Small ONNX models, made by hand, for tests that need a graph they know."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from splitserve.artifact import Preprocess
from splitserve.split import GraphView, Recipe, embed_recipe

SIDE = 32
CLASSES = 10
LABELS = tuple(f"class {index}" for index in range(CLASSES))

Shape = Sequence[int | str] | None


def floats(name: str, shape: Shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def weight(name: str, values: NDArray[np.float32]) -> onnx.TensorProto:
    return numpy_helper.from_array(values, name)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[onnx.TensorProto] = (),
    opset: int = 17,
    domains: Sequence[str] = (),
    ir_version: int = 8,
) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(weights))
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(name, 1) for name in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def write_model(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def conv(name: str, source: str, stride: int = 1) -> onnx.NodeProto:
    pads, kernel = [1, 1, 1, 1], [3, 3]
    inputs = [source, f"{name}.weight", f"{name}.bias"]
    return helper.make_node(
        "Conv", inputs, [name], name, strides=[stride] * 2, pads=pads, kernel_shape=kernel
    )


def relu(name: str, source: str) -> onnx.NodeProto:
    return helper.make_node("Relu", [source], [name], name)


def tiny_net(seed: int = 0) -> onnx.ModelProto:
    """Classify (batch, 3, 32, 32); a stem, a residual block, a second stage, a pool, a matrix.

    Multiply-adds: 55,296 (stem) + 2 x 147,456 (block) + 73,728 (stage) + 160 (logits).
    """
    generator = np.random.default_rng(seed)
    weights = []
    for name, (outputs, inputs) in {
        "stem.conv": (8, 3), "block.a.conv": (8, 8), "block.b": (8, 8), "stage.conv": (16, 8),
    }.items():  # fmt: skip
        values = generator.standard_normal((outputs, inputs, 3, 3), np.float32)
        weights.append(weight(f"{name}.weight", values / np.float32(np.sqrt(9 * inputs))))
        weights.append(weight(f"{name}.bias", generator.standard_normal(outputs, np.float32)))
    weights.append(weight("classes.weight", generator.standard_normal((CLASSES, 16), np.float32)))
    nodes = [
        conv("stem.conv", "image", stride=2),
        relu("stem", "stem.conv"),
        conv("block.a.conv", "stem"),
        relu("block.a", "block.a.conv"),
        conv("block.b", "block.a"),
        helper.make_node("Add", ["stem", "block.b"], ["block.sum"], "block.sum"),
        relu("block", "block.sum"),
        conv("stage.conv", "block", stride=2),
        relu("stage", "stage.conv"),
        helper.make_node("GlobalAveragePool", ["stage"], ["mean"], "mean"),
        helper.make_node("Flatten", ["mean"], ["pool"], "pool", axis=1),
        helper.make_node("Gemm", ["pool", "classes.weight"], ["logits"], "logits", transB=1),
    ]
    inputs = [floats("image", ["batch", 3, SIDE, SIDE])]
    return model_of(nodes, inputs, [floats("logits", ["batch", CLASSES])], weights)


TINY_RECIPE = Recipe(
    name="tiny",
    preprocess=Preprocess(
        resize_short_side=36, crop=(SIDE, SIDE), mean=(127.0,) * 3, std=(128.0,) * 3
    ),
    labels=LABELS,
)


def write_tiny(path: Path, seed: int = 0, recipe: Recipe = TINY_RECIPE) -> Path:
    write_model(tiny_net(seed), path)
    embed_recipe(path, recipe)
    return path


def fork_net(*, reads_image_late: bool = False) -> onnx.ModelProto:
    """Classify (batch, 3, 32, 32) by two branches that are narrow at the same time.

    `a` and `b` (2, 8, 8) together are an eighth of `stem` (8, 16, 16) before them, and behind them
    both branches are wide again until they meet. The picture itself may be read once more at the
    end, so that it crosses every cut.
    """
    generator = np.random.default_rng(0)
    weights = []
    for name, (outputs, inputs) in {
        "stem.conv": (8, 3), "a.conv": (2, 8), "b.conv": (2, 8), "c": (64, 2), "d": (64, 2),
    }.items():  # fmt: skip
        values = generator.standard_normal((outputs, inputs, 3, 3), np.float32)
        weights.append(weight(f"{name}.weight", values / np.float32(np.sqrt(9 * inputs))))
        weights.append(weight(f"{name}.bias", generator.standard_normal(outputs, np.float32)))
    weights.append(weight("classes.weight", generator.standard_normal((CLASSES, 64), np.float32)))
    nodes = [
        conv("stem.conv", "image", stride=2),
        relu("stem", "stem.conv"),
        conv("a.conv", "stem", stride=2),
        relu("a", "a.conv"),
        conv("b.conv", "stem", stride=2),
        relu("b", "b.conv"),
        conv("c", "a"),
        conv("d", "b"),
        helper.make_node("Add", ["c", "d"], ["both"], "both"),
        helper.make_node("GlobalAveragePool", ["both"], ["mean"], "mean"),
        helper.make_node("Flatten", ["mean"], ["pool"], "pool", axis=1),
        helper.make_node("Gemm", ["pool", "classes.weight"], ["scores"], "scores", transB=1),
        helper.make_node("ReduceMax", ["image"], ["peak"], "peak", axes=[2, 3], keepdims=0),
        helper.make_node("ReduceSum", ["peak", "axes"], ["bright"], "bright", keepdims=1),
        helper.make_node("Add", ["scores", "bright"], ["logits"], "logits"),
    ]
    weights.append(numpy_helper.from_array(np.array([1]), "axes"))
    if not reads_image_late:
        nodes = nodes[:11]
        nodes.append(helper.make_node("Gemm", ["pool", "classes.weight"], ["logits"], transB=1))
    inputs = [floats("image", ["batch", 3, SIDE, SIDE])]
    return model_of(nodes, inputs, [floats("logits", ["batch", CLASSES])], weights)


def random_dag(seed: int, most_nodes: int = 64, narrowness: float = 0.8) -> onnx.ModelProto:
    """Make a model of up to 24 nodes, or `most_nodes`, on (2,) tensors.

    It has one to three inputs and outputs, weights and Constant nodes, nodes of weights alone,
    nodes with two outputs, Ifs whose branches capture tensors, and nodes that no output depends on.
    """
    rng = random.Random(seed)
    inputs = [f"x{index}" for index in range(rng.randint(1, 3))]
    nodes = [helper.make_node("Constant", [], ["c"], value=weight("", np.ones(2, np.float32)))]
    tensors, constants = list(inputs), ["w", "c"]
    for index in range(rng.randint(3, 16)):
        if len(nodes) + 3 > most_nodes:
            break
        # Mostly the newest tensors, so that narrow places come about.
        near = tensors[-3:] if rng.random() < narrowness else tensors
        sources = [rng.choice(near) for _ in range(rng.randint(1, 3))]
        if rng.random() < 0.2:
            sources.append(rng.choice(constants))
        if rng.random() < 0.1:
            constants.append(f"c{index}")
            nodes.append(helper.make_node("Sum", ["w", "c"], [f"c{index}"]))
        tensors.append(f"t{index}")
        if rng.random() < 0.15:
            nodes.append(helper.make_node("TopK", [sources[0], "k"], [f"t{index}", f"i{index}"]))
            nodes.append(helper.make_node("Cast", [f"i{index}"], [f"u{index}"], to=1))
            tensors.append(f"u{index}")
        elif rng.random() < 0.2:
            nodes.append(choice(f"t{index}", "flag", sources, sources[:1]))
        else:
            nodes.append(helper.make_node("Sum", sources, [f"t{index}"]))
    made = [name for name in tensors if name not in inputs]
    outputs = rng.sample(made[-5:], min(len(made), rng.randint(1, 3)))
    return model_of(
        nodes,
        [floats(name, [2]) for name in inputs],
        [floats(name, [2]) for name in outputs],
        [
            weight("w", np.full(2, 0.5, np.float32)),
            numpy_helper.from_array(np.array([2]), "k"),
            numpy_helper.from_array(np.array(seed % 2 == 0), "flag"),
        ],
    )


def choice(name: str, flag: str, then: list[str], otherwise: list[str]) -> onnx.NodeProto:
    """Make an If whose branches sum tensors of the graph around it, captured by name."""
    bodies = [
        helper.make_graph(
            [helper.make_node("Sum", sources, [f"{name}.{side}"])],
            f"{name}.{side}",
            [],
            [floats(f"{name}.{side}", [2])],
        )
        for side, sources in (("then", then), ("else", otherwise))
    ]
    return helper.make_node("If", [flag], [name], then_branch=bodies[0], else_branch=bodies[1])


def read_by(node: onnx.NodeProto) -> set[str]:
    """What a node reads, the captures of branches without branches of their own included."""
    inside = [inner for attribute in node.attribute for inner in attribute.g.node]
    made = {name for inner in inside for name in inner.output}
    return {*node.input, *(name for inner in inside for name in inner.input)} - made


def reordered(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """Write the same nodes in another topological order."""
    rng, known = random.Random(seed), {value.name for value in model.graph.input}
    known |= {value.name for value in model.graph.initializer}
    left, order = list(model.graph.node), []
    while left:
        node = rng.choice([node for node in left if known.issuperset(read_by(node))])
        left.remove(node)
        order.append(node)
        known.update(node.output)
    other = onnx.ModelProto()
    other.CopyFrom(model)
    del other.graph.node[:]
    other.graph.node.extend(order)
    return other


def weighted(graph: GraphView, seed: int) -> GraphView:
    """Give every node multiply-adds, often none, and every tensor a size, now and then none.

    With every other seed tensors tend to shrink along the graph, so that many cuts are worth it.
    """
    rng = random.Random(seed)
    ends = {spec.name for spec in (*graph.inputs, *graph.outputs)}
    names = [spec.name for spec in graph.inputs]
    names += [name for node in graph.nodes for name in node.outputs if name in graph.specs]
    specs = {}
    for place, name in enumerate(names):
        size = rng.randint(1, 10**5)
        if seed % 2:
            size = 1 + int(10**6 * 0.6**place * (0.5 + rng.random()))
        if name in ends or rng.random() < 0.95:
            shape = (rng.choice((size, size, 2)),)
            specs[name] = graph.specs[name].model_copy(update={"shape": shape})
    work = [rng.choice((0, rng.randint(1, 9), rng.randint(1, 10**7))) for _ in graph.nodes]
    nodes = [
        replace(node, macs=0 if node.is_constant or node.is_dead else macs)
        for node, macs in zip(graph.nodes, work, strict=True)
    ]
    return replace(
        graph,
        nodes=tuple(nodes),
        specs=specs,
        inputs=tuple(specs[spec.name] for spec in graph.inputs),
        outputs=tuple(specs[spec.name] for spec in graph.outputs),
    )
