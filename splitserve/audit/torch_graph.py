"""An ONNX graph as a differentiable torch module: every node by one function of the table below.

Only what nets at a cut need is here. Anything else is named with its operator; it is a dozen lines
to add. Weights become buffers, nothing is trained, and shapes stay what the graph computes.
Operators: https://onnx.ai/onnx/operators, checked against ONNX Runtime in the tests.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from splitserve.audit.device import to_tensor
from splitserve.errors import GraphError

Attributes = Mapping[str, Any]
Inputs = Sequence[Tensor]  # one that is left out is empty
Operator = Callable[[Inputs, Attributes], Tensor | Sequence[Tensor]]
STANDARD_DOMAINS = ("", "ai.onnx")
ABSENT = torch.empty(0)
MIXING = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class TorchGraph(nn.Module):
    """Consecutive parts of a model as one module in evaluation mode.

    Args:
        parts: the models, each taking what those before it give; names are those of the tensors.

    Raises:
        GraphError: an operator that is not in the table; all such are named.
    """

    def __init__(self, parts: Sequence[onnx.ModelProto]) -> None:
        super().__init__()
        self._nodes = [node for part in parts for node in part.graph.node]
        missing = sorted({node.op_type for node in self._nodes if not _is_known(node)})
        if missing:
            raise GraphError(
                f"the audit cannot differentiate {', '.join(missing)}; operators that it can:"
                f" {', '.join(sorted(OPERATORS))}"
            )
        self._attributes = [_attributes(node) for node in self._nodes]
        self._buffer_of: dict[str, str] = {}
        for part in parts:
            for stored in part.graph.initializer:
                self._store(stored.name, numpy_helper.to_array(stored))
        self._last_use = {
            name: index for index, node in enumerate(self._nodes) for name in node.input
        }
        self.eval()

    def _store(self, name: str, values: np.ndarray[Any, Any]) -> None:
        if name not in self._buffer_of:
            self._buffer_of[name] = f"w{len(self._buffer_of)}"
            self.register_buffer(self._buffer_of[name], to_tensor(values.copy()))

    def forward(self, tensors: Mapping[str, Tensor], wanted: Sequence[str]) -> list[Tensor]:
        """Compute some tensors from others.

        Args:
            tensors: by name; nodes before them are left out.
            wanted: names.

        Raises:
            GraphError: a tensor that cannot be computed from these.
        """
        known = dict(tensors)
        needed = self._needed(set(known), wanted)
        for index in needed:
            node = self._nodes[index]
            inputs = [self._value(name, known) if name else ABSENT for name in node.input]
            try:
                made = OPERATORS[node.op_type](inputs, self._attributes[index])
            except (RuntimeError, ValueError, IndexError, KeyError) as error:
                raise GraphError(f"{node.op_type} {node.output[0]}: {error}") from error
            outputs = [made] if isinstance(made, Tensor) else list(made)
            known.update(zip(node.output, outputs, strict=False))
        return [self._value(name, known) for name in wanted]

    def _needed(self, known: set[str], wanted: Sequence[str]) -> list[int]:
        """Nodes between the known tensors and the wanted ones, in order."""
        missing = {name for name in wanted if name not in known}
        needed = []
        for index in range(len(self._nodes) - 1, -1, -1):
            node = self._nodes[index]
            if missing.intersection(node.output):
                needed.append(index)
                missing.difference_update(node.output)
                missing.update(name for name in node.input if name and name not in known)
        return needed[::-1]

    def _value(self, name: str, known: Mapping[str, Tensor]) -> Tensor:
        if name in known:
            return known[name]
        if name in self._buffer_of:
            return self.get_buffer(self._buffer_of[name])
        raise GraphError(f"{name} cannot be computed from {', '.join(known) or 'nothing'}")

    @property
    def names(self) -> list[str]:
        """Every tensor that a node makes, in order."""
        return [name for node in self._nodes for name in node.output if name]

    @property
    def nodes(self) -> Sequence[onnx.NodeProto]:
        """In the order in which they run."""
        return self._nodes

    def stored(self) -> list[tuple[str, Tensor]]:
        """Tensors that come with the graph, by their names in it."""
        return [(name, self.get_buffer(place)) for name, place in self._buffer_of.items()]

    def convolutions_before(self, wanted: str) -> int:
        """Convolutions and matrix products that a tensor depends on."""
        indices = self._needed(set(), [wanted])
        return sum(self._nodes[index].op_type in MIXING for index in indices)

    def single_tensors(self, source: str) -> list[str]:
        """Floating-point tensors that alone separate what comes before them from what follows.

        One sweep over last uses, as `splitserve cuts` does.

        Args:
            source: the graph's input.
        """
        live: set[str] = {source}
        singles: list[str] = []
        weights = set(self._buffer_of)
        for index, node in enumerate(self._nodes):
            if not live.intersection(node.input):
                weights.update(node.output)  # computed from weights alone
                continue
            live = {name for name in live if self._last_use.get(name, -1) > index}
            live.update(name for name in node.output if name)
            if len(live) == 1:
                singles.extend(live)
        return singles


def _is_known(node: onnx.NodeProto) -> bool:
    return node.op_type in OPERATORS and node.domain in STANDARD_DOMAINS


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    found = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    return {
        name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()
    }


def _conv(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, weight, *bias = inputs
    dims = weight.dim() - 2
    strides = attributes.get("strides", [1] * dims)
    dilations = attributes.get("dilations", [1] * dims)
    span = [(size - 1) * step + 1 for size, step in zip(weight.shape[2:], dilations, strict=True)]
    x = _padded(x, attributes, span, strides, 0.0)
    run = (functional.conv1d, functional.conv2d, functional.conv3d)[dims - 1]
    return run(
        x, weight, bias[0] if bias else None, strides, 0, dilations, attributes.get("group", 1)
    )


def _padded(
    x: Tensor, attributes: Attributes, span: Sequence[int], strides: Sequence[int], value: float
) -> Tensor:
    """Pad by `pads` or `auto_pad`; torch takes the last dimension first."""
    dims, kind = len(span), attributes.get("auto_pad", "NOTSET")
    pads = list(attributes.get("pads", [0] * 2 * dims))
    if kind in ("SAME_UPPER", "SAME_LOWER"):
        pads = [0] * 2 * dims
        for axis in range(dims):
            size, step = x.shape[2 + axis], strides[axis]
            total = max(0, (-(-size // step) - 1) * step + span[axis] - size)
            small, large = total // 2, total - total // 2
            pads[axis], pads[dims + axis] = (
                (small, large) if kind == "SAME_UPPER" else (large, small)
            )
    pairs = [p for axis in range(dims - 1, -1, -1) for p in (pads[axis], pads[dims + axis])]
    return functional.pad(x, pairs, value=value) if any(pairs) else x


def _conv_transpose(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, weight, *bias = inputs
    dims = weight.dim() - 2
    pads = attributes.get("pads", [0] * 2 * dims)
    if list(pads[:dims]) != list(pads[dims:]) or attributes.get("auto_pad", "NOTSET") != "NOTSET":
        raise ValueError("only padding that is the same on both sides")
    run = (
        functional.conv_transpose1d,
        functional.conv_transpose2d,
        functional.conv_transpose3d,
    )[dims - 1]
    return run(
        x,
        weight,
        bias[0] if bias else None,
        attributes.get("strides", [1] * dims),
        pads[:dims],
        attributes.get("output_padding", [0] * dims),
        attributes.get("group", 1),
        attributes.get("dilations", [1] * dims),
    )


def _pool(inputs: Inputs, attributes: Attributes, *, is_max: bool) -> Tensor:
    (x,) = inputs
    kernel = attributes["kernel_shape"]
    strides = attributes.get("strides", [1] * len(kernel))
    if attributes.get("ceil_mode", 0):
        raise ValueError("pooling that rounds up")
    if is_max:
        x = _padded(x, attributes, kernel, strides, -torch.inf)
        run = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
        return run[len(kernel) - 1](x, kernel, strides)
    mean = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[len(kernel) - 1]
    padded = _padded(x, attributes, kernel, strides, 0.0)
    if padded is x or attributes.get("count_include_pad", 0):
        return mean(padded, kernel, strides)
    ones = _padded(torch.ones_like(x[:1, :1]), attributes, kernel, strides, 0.0)
    return mean(padded, kernel, strides) / mean(ones, kernel, strides)


def _clip(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, *limits = inputs
    low, high = [*limits, ABSENT, ABSENT][:2]
    low = torch.tensor(attributes["min"]) if "min" in attributes else low
    high = torch.tensor(attributes["max"]) if "max" in attributes else high
    x = torch.maximum(x, low.to(x)) if low.numel() else x
    return torch.minimum(x, high.to(x)) if high.numel() else x


def _norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, scale, bias, mean, variance = inputs
    if attributes.get("training_mode", 0):
        raise ValueError("batch normalisation in training mode")
    epsilon = attributes.get("epsilon", 1e-5)
    return functional.batch_norm(x, mean, variance, scale, bias, training=False, eps=epsilon)


def _gemm(inputs: Inputs, attributes: Attributes) -> Tensor:
    a, b, *c = inputs
    a = a.T if attributes.get("transA", 0) else a
    b = b.T if attributes.get("transB", 0) else b
    product: Tensor = attributes.get("alpha", 1.0) * (a @ b)
    if c and c[0].numel():
        product = product + attributes.get("beta", 1.0) * c[0]
    return product


def _axes(inputs: Inputs, attributes: Attributes) -> list[int] | None:
    """Axes as an attribute, or as the second input of newer opsets."""
    if len(inputs) > 1 and inputs[1].numel():
        return _ints(inputs[1])
    found = attributes.get("axes")
    return list(found) if found is not None else None


def _reduce(inputs: Inputs, attributes: Attributes, run: Callable[..., Tensor]) -> Tensor:
    x, axes = inputs[0], _axes(inputs, attributes)
    if not axes:
        if attributes.get("noop_with_empty_axes", 0):
            return x
        axes = list(range(x.dim()))
    return run(x, dim=tuple(axes), keepdim=bool(attributes.get("keepdims", 1)))


def _ints(tensor: Tensor) -> list[int]:
    return [int(value) for value in tensor.reshape(-1).tolist()]


def _reshape(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, shape = inputs
    sizes = _ints(shape)
    if not attributes.get("allowzero", 0):
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(inputs: Inputs, attributes: Attributes) -> Tensor:
    (x,) = inputs
    axis = attributes.get("axis", 1) % (x.dim() + 1)
    return x.reshape(int(np.prod(x.shape[:axis])), -1)


def _squeeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, axes = inputs[0], _axes(inputs, attributes)
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _unsqueeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, axes = inputs[0], _axes(inputs, attributes) or []
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _pad(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, *more = inputs
    pads = _ints(more[0]) if more else list(attributes["pads"])
    value = float(more[1]) if len(more) > 1 and more[1].numel() else 0.0
    dims = _ints(more[2]) if len(more) > 2 and more[2].numel() else list(range(x.dim()))
    both = {dim % x.dim(): (pads[i], pads[len(dims) + i]) for i, dim in enumerate(dims)}
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}[
        attributes.get("mode", "constant")
    ]
    last = x.dim()
    while last and both.get(x.dim() - last, (0, 0)) == (0, 0):
        last -= 1  # torch pads the last dimensions only, and reflects no others
    pairs = [p for dim in range(x.dim() - 1, x.dim() - last - 1, -1) for p in both.get(dim, (0, 0))]
    if not any(pairs):
        return x
    if mode == "constant":
        return functional.pad(x, pairs, value=value)
    return functional.pad(x, pairs, mode=mode)


def _slice(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, *more = inputs
    if more:
        starts, ends = _ints(more[0]), _ints(more[1])
        axes = _ints(more[2]) if len(more) > 2 and more[2].numel() else range(len(starts))
        steps = _ints(more[3]) if len(more) > 3 and more[3].numel() else [1] * len(starts)
    else:
        starts, ends = attributes["starts"], attributes["ends"]
        axes, steps = attributes.get("axes", range(len(starts))), [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        picked = range(*slice(start, end, step).indices(x.shape[axis]))
        x = x.index_select(axis, torch.tensor(list(picked), dtype=torch.int64, device=x.device))
    return x


def _split(inputs: Inputs, attributes: Attributes) -> Sequence[Tensor]:
    x, axis = inputs[0], attributes.get("axis", 0)
    if len(inputs) > 1 and inputs[1].numel():
        sizes = _ints(inputs[1])
    elif "split" in attributes:
        sizes = list(attributes["split"])
    elif "num_outputs" in attributes:
        count, size = attributes["num_outputs"], x.shape[axis]
        each = -(-size // count)
        sizes = [min(each, max(0, size - each * index)) for index in range(count)]
    else:
        raise ValueError("a split that names neither sizes nor their number")
    return list(torch.split(x, sizes, axis))


def _resize(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, *more = inputs
    kind = attributes.get("mode", "nearest")
    scales = more[1] if len(more) > 1 and more[1].numel() else None
    sizes = more[2] if len(more) > 2 and more[2].numel() else None
    if sizes is not None:
        target = _ints(sizes)[2:]
    elif scales is not None:
        target = [int(n * s) for n, s in zip(x.shape[2:], scales.tolist()[2:], strict=True)]
    else:
        raise ValueError("neither scales nor sizes")
    if kind == "nearest":
        return functional.interpolate(x, target, mode="nearest")
    corners = attributes.get("coordinate_transformation_mode") == "align_corners"
    return functional.interpolate(x, target, mode="bilinear", align_corners=corners)


def _constant(_: Inputs, attributes: Attributes) -> Tensor:
    if "value" in attributes:
        return to_tensor(numpy_helper.to_array(attributes["value"]).copy())
    for name in ("value_float", "value_floats", "value_int", "value_ints"):
        if name in attributes:
            return torch.tensor(attributes[name])
    raise ValueError("a constant of another kind than numbers")


def _cast(inputs: Inputs, attributes: Attributes) -> Tensor:
    (x,) = inputs
    kind = onnx.helper.tensor_dtype_to_np_dtype(attributes["to"])
    return x.to(torch.from_numpy(np.empty(0, kind)).dtype)


def _gather(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, indices = inputs
    axis = attributes.get("axis", 0) % x.dim()
    wanted = torch.where(indices < 0, indices + x.shape[axis], indices)
    picked = x.index_select(axis, wanted.reshape(-1).long())
    return picked.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def _softmax(inputs: Inputs, attributes: Attributes) -> Tensor:
    return torch.softmax(inputs[0], attributes.get("axis", -1))


def _constant_of_shape(inputs: Inputs, attributes: Attributes) -> Tensor:
    value = attributes.get("value")
    filled = torch.zeros(1) if value is None else to_tensor(numpy_helper.to_array(value))
    return filled.reshape(()).expand(_ints(inputs[0])).clone()


def _expand(inputs: Inputs, _: Attributes) -> Tensor:
    x, shape = inputs
    return x * torch.ones(_ints(shape), dtype=x.dtype, device=x.device)


def _prelu(inputs: Inputs, _: Attributes) -> Tensor:
    x, slope = inputs
    return torch.where(x >= 0, x, slope * x)


def _one(run: Callable[[Tensor], Tensor]) -> Operator:
    return lambda inputs, _: run(inputs[0])


def _two(run: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda inputs, _: run(inputs[0], inputs[1])


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


OPERATORS: dict[str, Operator] = {
    "Abs": _one(torch.abs),
    "Add": _two(torch.add),
    "AveragePool": lambda i, a: _pool(i, a, is_max=False),
    "BatchNormalization": _norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda i, a: torch.cat(list(i), a["axis"]),
    "Constant": _constant,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _two(_divide),
    "Dropout": _one(lambda x: x),
    "Elu": lambda i, a: functional.elu(i[0], a.get("alpha", 1.0)),
    "Erf": _one(torch.erf),
    "Exp": _one(torch.exp),
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": lambda i, a: functional.gelu(i[0], approximate=a.get("approximate", "none")),
    "Gemm": _gemm,
    "GlobalAveragePool": _one(lambda x: x.mean(tuple(range(2, x.dim())), keepdim=True)),
    "GlobalMaxPool": _one(lambda x: x.amax(tuple(range(2, x.dim())), keepdim=True)),
    "HardSigmoid": lambda i, a: torch.clamp(a.get("alpha", 0.2) * i[0] + a.get("beta", 0.5), 0, 1),
    "HardSwish": _one(functional.hardswish),
    "Identity": _one(lambda x: x),
    "LeakyRelu": lambda i, a: functional.leaky_relu(i[0], a.get("alpha", 0.01)),
    "Log": _one(torch.log),
    "MatMul": _two(torch.matmul),
    "Max": lambda i, _: reduce(torch.maximum, i),
    "MaxPool": lambda i, a: _pool(i, a, is_max=True),
    "Min": lambda i, _: reduce(torch.minimum, i),
    "Mul": _two(torch.mul),
    "Neg": _one(torch.neg),
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _two(torch.pow),
    "Reciprocal": _one(torch.reciprocal),
    "ReduceMax": lambda i, a: _reduce(i, a, torch.amax),
    "ReduceMean": lambda i, a: _reduce(i, a, torch.mean),
    "ReduceSum": lambda i, a: _reduce(i, a, torch.sum),
    "Relu": _one(torch.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _one(lambda x: torch.tensor(x.shape)),
    "Sigmoid": _one(torch.sigmoid),
    "Slice": _slice,
    "Softmax": _softmax,
    "Softplus": _one(functional.softplus),
    "Split": _split,
    "Sqrt": _one(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _two(torch.sub),
    "Tanh": _one(torch.tanh),
    "Transpose": lambda i, a: i[0].permute(a.get("perm", tuple(range(i[0].dim()))[::-1])),
    "Unsqueeze": _unsqueeze,
}
