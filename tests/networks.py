"""Networks with the shapes of real ones, small and made by hand, for tests of the whole split."""

from collections.abc import Sequence

import numpy as np
import onnx
from graphs import floats, model_of, weight
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Values = NDArray[np.float32]


class Builder:
    """Collects nodes and seeded weights; every method returns the name of what it made."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._generator = np.random.default_rng(0)

    def add(self, op: str, name: str, *inputs: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [name], name, **attributes))
        return name

    def constant(self, name: str, values: object, dtype: type = np.float32) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def noise(self, name: str, *shape: int) -> str:
        values = self._generator.standard_normal(shape, np.float32)
        self.weights.append(weight(name, values / np.float32(np.sqrt(np.prod(shape[1:])))))
        return name

    def conv(self, name: str, source: str, sizes: tuple[int, int, int], stride: int = 1) -> str:
        """Convolution of (inputs, outputs, kernel) with ReLU behind it."""
        inputs, outputs, kernel = sizes
        kept = self.noise(f"{name}.weight", outputs, inputs, kernel, kernel)
        pads, strides = [kernel // 2] * 4, [stride] * 2
        self.add("Conv", f"{name}.conv", source, kept, pads=pads, strides=strides)
        return self.add("Relu", name, f"{name}.conv")

    def linear(self, name: str, source: str, inputs: int, outputs: int) -> str:
        kept = self.noise(f"{name}.weight", inputs, outputs)
        self.add("MatMul", f"{name}.product", source, kept)
        return self.add("Add", name, f"{name}.product", self.noise(f"{name}.bias", outputs))

    def model(
        self,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        opset: int = 17,
    ) -> onnx.ModelProto:
        return model_of(self.nodes, inputs, outputs, self.weights, opset)


def googlenet(opset: int = 17) -> onnx.ModelProto:
    """Two inception blocks: four branches each, joined by a concat; one input, two outputs."""
    made = Builder()
    last, width = made.conv("stem", "image", (3, 8, 3), stride=2), 8
    for block in ("a", "b"):
        branches = [
            made.conv(f"{block}.one", last, (width, 4, 1)),
            made.conv(
                f"{block}.three", made.conv(f"{block}.narrow3", last, (width, 4, 1)), (4, 8, 3)
            ),
            made.conv(
                f"{block}.five", made.conv(f"{block}.narrow5", last, (width, 2, 1)), (2, 4, 5)
            ),
        ]
        pool = made.add(
            "MaxPool", f"{block}.pool", last,
            kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1],
        )  # fmt: skip
        branches.append(made.conv(f"{block}.after", pool, (width, 4, 1)))
        last, width = made.add("Concat", block, *branches, axis=1), 20
    made.add("GlobalAveragePool", "mean", last)
    made.add("Flatten", "pool", "mean", axis=1)
    made.linear("logits", "pool", width, 5)
    made.add("Softmax", "shares", "logits", axis=1)
    return made.model(
        [floats("image", ["batch", 3, 16, 16])],
        [floats("logits", ["batch", 5]), floats("shares", ["batch", 5])],
        opset,
    )


def unet(opset: int = 17) -> onnx.ModelProto:
    """Down twice and up twice with skips; height and width are free, so is the batch."""
    made = Builder()
    made.constant("scales", [1, 1, 2, 2])
    made.constant("roi", [])  # opset 11 wants it, later ones may leave it out
    level0 = made.conv("level0", "image", (1, 4, 3))
    level1 = made.conv("level1", level0, (4, 8, 3), stride=2)
    bottom = made.conv("bottom", level1, (8, 16, 3), stride=2)
    made.add("Resize", "up1.size", bottom, "roi", "scales", mode="nearest")
    up1 = made.conv("up1", made.add("Concat", "skip1", "up1.size", level1, axis=1), (24, 8, 3))
    made.add("Resize", "up0.size", up1, "roi", "scales", mode="nearest")
    up0 = made.conv("up0", made.add("Concat", "skip0", "up0.size", level0, axis=1), (12, 4, 3))
    made.add("Sigmoid", "mask", made.conv("thin", up0, (4, 1, 1)))
    ends = [floats(name, ["batch", 1, "height", "width"]) for name in ("image", "mask")]
    return made.model([ends[0]], [ends[1]], opset)


WIDTH, HEADS, WORDS = 8, 2, 11


def transformer(opset: int = 17) -> onnx.ModelProto:
    """Two encoder layers on (batch, tokens) int64 words and a mask of the same shape."""
    made = Builder()
    made.constant("one", 1)
    made.constant("minus", -1e4)
    made.constant("heads", [0, 0, HEADS, WIDTH // HEADS], np.int64)
    made.constant("joined", [0, 0, WIDTH], np.int64)
    made.constant("middle", [1, 2], np.int64)
    made.add("Gather", "embedding", made.noise("table", WORDS, WIDTH), "words", axis=0)
    made.add("Cast", "mask.float", "mask", to=TensorProto.FLOAT)
    made.add("Sub", "mask.not", "one", "mask.float")
    made.add("Mul", "mask.low", "mask.not", "minus")
    made.add("Unsqueeze", "mask.bias", "mask.low", "middle")
    last = "embedding"
    for layer in ("layer0", "layer1"):
        attended = _attention(made, f"{layer}.attention", last)
        middle = _normed(made, f"{layer}.middle", last, attended)
        wide = made.linear(f"{layer}.wide", middle, WIDTH, 2 * WIDTH)
        made.add("Erf", f"{layer}.erf", wide)
        made.add("Mul", f"{layer}.act", wide, f"{layer}.erf")
        narrow = made.linear(f"{layer}.narrow", f"{layer}.act", 2 * WIDTH, WIDTH)
        last = _normed(made, layer, middle, narrow)
    made.add("ReduceMean", "sentence", last, axes=[1], keepdims=0)
    made.linear("answer", "sentence", WIDTH, 3)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        for name in ("words", "mask")
    ]
    return made.model(inputs, [floats("answer", ["batch", 3])], opset)


def _attention(made: Builder, name: str, source: str) -> str:
    parts = {}
    for part, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        linear = made.linear(f"{name}.{part}", source, WIDTH, WIDTH)
        apart = made.add("Reshape", f"{name}.{part}.heads", linear, "heads")
        parts[part] = made.add("Transpose", f"{name}.{part}.turned", apart, perm=order)
    scores = made.add("MatMul", f"{name}.scores", parts["q"], parts["k"])
    masked = made.add("Add", f"{name}.masked", scores, "mask.bias")
    shares = made.add("Softmax", f"{name}.shares", masked, axis=-1)
    mixed = made.add("MatMul", f"{name}.mixed", shares, parts["v"])
    turned = made.add("Transpose", f"{name}.turned", mixed, perm=[0, 2, 1, 3])
    joined = made.add("Reshape", f"{name}.joined", turned, "joined")
    return made.linear(name, joined, WIDTH, WIDTH)


def _normed(made: Builder, name: str, left: str, right: str) -> str:
    total = made.add("Add", f"{name}.sum", left, right)
    scale = made.constant(f"{name}.scale", np.ones(WIDTH))
    shift = made.constant(f"{name}.shift", np.zeros(WIDTH))
    return made.add("LayerNormalization", name, total, scale, shift, axis=-1)


def choosing() -> onnx.ModelProto:
    """An If that takes a branch by the data; both branches read a tensor from far before it."""
    made = Builder()
    made.add("Relu", "early", made.linear("first", "x", 4, 6))
    made.linear("middle", "early", 6, 6)
    made.add("ReduceMean", "level", "middle", keepdims=0)
    made.add("Greater", "flag", "level", made.constant("limit", 0.0))
    bodies = [
        helper.make_graph(
            [helper.make_node(op, ["early", "middle"], [side])],
            side, [], [floats(side, ["batch", 6])],
        )
        for side, op in (("then", "Add"), ("else", "Sub"))
    ]  # fmt: skip
    made.add("If", "chosen", "flag", then_branch=bodies[0], else_branch=bodies[1])
    made.add("Tanh", "late", made.linear("second", "chosen", 6, 6))
    made.linear("y", "late", 6, 2)
    return made.model([floats("x", ["batch", 4])], [floats("y", ["batch", 2])])


def looping() -> onnx.ModelProto:
    """A Loop of three rounds whose body captures a weight and an activation."""
    made = Builder()
    made.add("Relu", "early", made.linear("first", "x", 4, 6))
    made.add("Tanh", "start", made.linear("middle", "early", 6, 6))
    made.constant("rounds", 3, np.int64)
    made.constant("go", True, np.bool_)
    made.noise("turn", 6, 6)
    flag = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("in", "out")]
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "turn"], ["turned"]),
            helper.make_node("Add", ["turned", "early"], ["sum"]),
            helper.make_node("Tanh", ["sum"], ["next"]),
            helper.make_node("Identity", ["in"], ["out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            flag[0],
            floats("state", ["batch", 6]),
        ],
        [flag[1], floats("next", ["batch", 6])],
    )
    made.add("Loop", "looped", "rounds", "go", "start", body=body)
    made.add("Relu", "late", made.linear("second", "looped", 6, 6))
    made.linear("y", "late", 6, 2)
    model = made.model([floats("x", ["batch", 4])], [floats("y", ["batch", 2])])
    # ONNX infers no shape behind a Loop, whose state may change its own; exporters write it down.
    model.graph.value_info.append(floats("looped", ["batch", 6]))
    return model


NETWORKS = {
    "googlenet": googlenet,
    "unet": unet,
    "transformer": transformer,
    "if": choosing,
    "loop": looping,
}
