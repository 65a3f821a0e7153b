"""An exit as an ONNX graph: pooled features of the egress tensors, a matrix, a softmax."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from splitserve.calibrate.fit import channel_axis
from splitserve.errors import UsageError
from splitserve.tensors import TensorSpec

OPSET, IR_VERSION = 17, 8  # what every ONNX Runtime that we support reads
FLOATS = {
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
}
FEATURES, PROBABILITIES = "exit.features", "exit.probabilities"

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Classifier:
    """A linear map from features to scores.

    Args:
        weight: (features, classes).
        bias: (classes,).
        temperature: what the scores are divided by before the softmax.
    """

    weight: Doubles
    bias: Doubles
    temperature: float


def build_features(egress: Sequence[TensorSpec], *, channels_last: bool) -> bytes:
    """Build the graph from egress tensors to features alone: (1, features), float32.

    Features of each tensor: a flat one as it is; of others the mean, the standard deviation and
    the maximum of every channel over space, and where the space is known and at least 2 by 2, the
    means of its four quarters.

    Args:
        egress: of the cut.
        channels_last: of pictures; token sequences have their channels last in any case.

    Raises:
        UsageError: no tensor of the cut has features of a known number.
    """
    builder = _pooled(egress, channels_last)
    return builder.model(FEATURES, ["one", "features"])


def build_exit(
    egress: Sequence[TensorSpec], classifier: Classifier, *, channels_last: bool
) -> bytes:
    """Build the whole exit: from egress tensors to class probabilities, (1, classes), float32."""
    builder = _pooled(egress, channels_last)
    weight = builder.constant("exit.weight", classifier.weight.astype(np.float32))
    bias = builder.constant("exit.bias", classifier.bias.astype(np.float32))
    scale = builder.constant("exit.scale", np.array(1 / classifier.temperature, np.float32))
    builder.add("Gemm", "exit.scores", FEATURES, weight, bias)
    builder.add("Mul", "exit.scaled", "exit.scores", scale)
    builder.add("Softmax", PROBABILITIES, "exit.scaled", axis=1)
    return builder.model(PROBABILITIES, ["one", classifier.weight.shape[1]])


class _Builder:
    """Collects nodes and constants; every method returns the name of what it made."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.inputs: list[TensorSpec] = []

    def add(self, op: str, name: str, *inputs: str, **attributes: Any) -> str:  # noqa: ANN401
        self.nodes.append(helper.make_node(op, list(inputs), [name], name, **attributes))
        return name

    def constant(self, name: str, values: npt.NDArray[np.float32]) -> str:
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def model(self, output: str, shape: Sequence[int | str]) -> bytes:
        inputs = [
            helper.make_tensor_value_info(spec.name, FLOATS[spec.dtype], list(spec.shape))
            for spec in self.inputs
        ]
        made = helper.make_tensor_value_info(output, TensorProto.FLOAT, list(shape))
        graph = helper.make_graph(self.nodes, "exit", inputs, [made], self.constants)
        opsets = [helper.make_opsetid("", OPSET)]
        model: ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        return bytes(model.SerializeToString(deterministic=True))


def _pooled(egress: Sequence[TensorSpec], channels_last: bool) -> _Builder:
    builder = _Builder()
    parts = []
    for index, spec in enumerate(egress):
        parts += _pool(builder, spec, f"exit.{index}", channels_last)
    if not parts:
        raise UsageError(
            f"an exit needs features of a known number, and {', '.join(s.name for s in egress)}"
            " have none: give the artifact fixed sizes with splitserve split --shape"
        )
    builder.add("Concat", FEATURES, *parts, axis=1)
    return builder


def _pool(builder: _Builder, spec: TensorSpec, name: str, channels_last: bool) -> list[str]:
    """Add the features of one tensor; none where their number is not known."""
    rank = len(spec.shape)
    axis = channel_axis(spec, channels_last)
    is_one = rank >= 2 and (isinstance(spec.shape[0], str) or spec.shape[0] == 1)
    if spec.dtype not in FLOATS or axis == 0 or not is_one:
        return []
    builder.inputs.append(spec)
    source = builder.add("Cast", f"{name}.float", spec.name, to=TensorProto.FLOAT)
    if rank == 2:
        return [source]
    order = [0, axis, *(one for one in range(1, rank) if one != axis)]
    maps = builder.add("Transpose", f"{name}.maps", source, perm=order)
    over: dict[str, Any] = {"axes": list(range(2, rank)), "keepdims": 1}
    mean = builder.add("ReduceMean", f"{name}.mean", maps, **over)
    apart = builder.add("Sub", f"{name}.apart", maps, mean)
    square = builder.add("Mul", f"{name}.square", apart, apart)
    variance = builder.add("ReduceMean", f"{name}.variance", square, **over)
    pooled = [
        mean,
        builder.add("Sqrt", f"{name}.deviation", variance),
        builder.add("ReduceMax", f"{name}.most", maps, **over),
    ]
    sizes = [spec.shape[one] for one in order[2:]]
    if len(sizes) == 2 and all(isinstance(size, int) and size >= 2 for size in sizes):
        # Of an odd size the middle row belongs to both halves.
        kernel = [(int(size) + 1) // 2 for size in sizes]
        strides = [int(size) // 2 for size in sizes]
        quarters = builder.add(
            "AveragePool", f"{name}.quarters", maps, kernel_shape=kernel, strides=strides
        )
        pooled.append(quarters)
    return [builder.add("Flatten", f"{one}.flat", one, axis=1) for one in pooled]
