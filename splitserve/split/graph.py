"""Read-only view of an ONNX graph: what is computed from what, in which shape, at which cost."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError
from pydantic import ValidationError

from splitserve.errors import GraphError, UsageError
from splitserve.tensors import DTYPES, TensorSpec

OPSET_MIN = 11
STANDARD_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})

# Where each mixing operation keeps its weight; MatMul and Gemm multiply their last common axis.
WEIGHT_INPUT = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "ConvTranspose": 1}
MATMUL = frozenset({"MatMul", "MatMulInteger", "QLinearMatMul"})
# Two copies of these on two sides of a cut would draw different numbers.
RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial",
     "Bernoulli"}
)  # fmt: skip

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """One operation; `macs` are its multiply-adds for batch 1.

    Control flow is one node: an If counts its dearer branch, the body of a loop counts once.
    """

    op: str
    inputs: tuple[str, ...]
    """What it reads, the names that its bodies capture from outside included."""
    outputs: tuple[str, ...]
    macs: int
    is_constant: bool
    """Computed from initialisers only: duplicated on both sides of a cut at no cost."""
    is_dead: bool
    """No output depends on it: left out of every part, and of the multiply-adds."""


@dataclass(frozen=True, slots=True)
class GraphView:
    """A model's graph in topological order.

    Args:
        model: the parsed ONNX model.
        inputs: what the caller supplies; initialisers are left out.
        outputs: what the model answers.
        nodes: one per node of `model.graph`, in its order.
        specs: dtype and shape of every tensor whose shape is known.
    """

    model: onnx.ModelProto
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    nodes: tuple[Node, ...]
    specs: Mapping[str, TensorSpec]

    @property
    def macs(self) -> int:
        """Multiply-adds of the whole model for batch 1."""
        return sum(node.macs for node in self.nodes)

    @property
    def opset(self) -> int:
        """Version of the standard operator set."""
        return _opset(self.model)


def load_graph(path: Path) -> GraphView:
    """Read an ONNX file and refuse what cannot be split, with the node and the reason.

    Raises:
        UsageError: no such file.
        GraphError: not an ONNX model, or one with parts that this version does not split.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        model = onnx.load(str(path), format="protobuf")
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError) as error:
        raise GraphError(f"{path}: not a valid ONNX model: {error}") from error
    return view(model)


def view(model: onnx.ModelProto) -> GraphView:
    """Build the view of a parsed model; local functions are written out in place.

    Raises:
        GraphError: sparse initialisers, an opset below 11, a foreign operator domain, no input,
            or a graph that ONNX cannot infer shapes for.
    """
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    _refuse_unsupported(model)
    try:
        symbolic = onnx.shape_inference.infer_shapes(model, data_prop=True)
        concrete = onnx.shape_inference.infer_shapes(_with_free_dims_one(model), data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise GraphError(f"shapes cannot be inferred: {error}") from error
    initialisers = {value.name for value in model.graph.initializer}
    inputs = [value for value in symbolic.graph.input if value.name not in initialisers]
    if not inputs:
        raise GraphError("the model has no input, so there is nothing to split")
    specs = {
        value.name: spec for value in _values(symbolic.graph) if (spec := _spec(value)) is not None
    }
    missing = [v.name for v in (*inputs, *model.graph.output) if v.name not in specs]
    if missing:
        raise GraphError(f"{missing[0]}: not a dense tensor of known rank and a common dtype")
    return GraphView(
        model=model,
        inputs=tuple(specs[value.name] for value in inputs),
        outputs=tuple(specs[value.name] for value in model.graph.output),
        nodes=_nodes(concrete.graph, initialisers),
        specs=specs,
    )


def _refuse_unsupported(model: onnx.ModelProto) -> None:
    if _opset(model) < OPSET_MIN:
        raise GraphError(
            f"opset {_opset(model)}; splitserve reads opset {OPSET_MIN} and newer"
            " (onnx.version_converter can raise it)"
        )
    _refuse_parts(model.graph)


def _refuse_parts(graph: onnx.GraphProto) -> None:
    if graph.sparse_initializer:
        raise GraphError("the model holds sparse initialisers")
    for index, node in enumerate(graph.node):
        if node.domain not in STANDARD_DOMAINS:
            what = f"node {node.name or index} ({node.op_type})"
            raise GraphError(f"{what}: operator domain {node.domain!r} is not one we may load")
        for body in _bodies(node):
            _refuse_parts(body)


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Subgraphs of a control-flow node."""
    return [
        body
        for attribute in node.attribute
        for body in ((attribute.g,) if attribute.HasField("g") else attribute.graphs)
    ]


def _reads(node: onnx.NodeProto) -> tuple[str, ...]:
    """Names that a node reads: its inputs, and what its bodies capture from the scopes around."""
    names = dict.fromkeys(name for name in node.input if name)
    for body in _bodies(node):
        names.update(dict.fromkeys(_captures(body)))
    return tuple(names)


def _captures(body: onnx.GraphProto) -> list[str]:
    """Names that a body takes from the scopes around it, in the order of use."""
    made = {value.name for value in (*body.input, *body.initializer)}
    captured = []
    for node in body.node:
        captured += [name for name in _reads(node) if name not in made]
        made.update(node.output)
    return captured + [value.name for value in body.output if value.name not in made]


def _is_random(node: onnx.NodeProto) -> bool:
    """Whether two copies of a node would give different values."""
    inside = (inner for body in _bodies(node) for inner in body.node)
    return node.op_type in RANDOM or any(_is_random(inner) for inner in inside)


def _opset(model: onnx.ModelProto) -> int:
    return next((int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def _with_free_dims_one(model: onnx.ModelProto) -> onnx.ModelProto:
    frozen = onnx.ModelProto()
    frozen.CopyFrom(model)
    for value in frozen.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 1:
                dim.dim_value = 1
    del frozen.graph.value_info[:]
    for value in frozen.graph.output:
        value.type.tensor_type.ClearField("shape")
    return frozen


def _values(graph: onnx.GraphProto) -> Iterable[onnx.ValueInfoProto]:
    return (*graph.input, *graph.value_info, *graph.output)


def _spec(value: onnx.ValueInfoProto) -> TensorSpec | None:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
        return None
    try:
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    except KeyError:
        return None
    if dtype not in DTYPES:
        return None
    dims = (
        dim.dim_value if dim.dim_value > 0 else dim.dim_param or f"{value.name}.{axis}"
        for axis, dim in enumerate(kind.shape.dim)
    )
    try:
        return TensorSpec(name=value.name, dtype=dtype, shape=tuple(dims))
    except ValidationError as error:  # a damaged file may hold bytes where text belongs
        raise GraphError(f"the name or shape of tensor {value.name!r} is damaged") from error


def _shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    shapes = {value.name: tuple(value.dims) for value in graph.initializer}
    for value in _values(graph):
        shape = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        if value.type.tensor_type.HasField("shape") and all(size > 0 for size in shape):
            shapes.setdefault(value.name, shape)
    return shapes


def _nodes(graph: onnx.GraphProto, initialisers: set[str]) -> tuple[Node, ...]:
    shapes = _shapes(graph)
    constant, alive = set(initialisers), _alive(graph)
    nodes = []
    for index, proto in enumerate(graph.node):
        inputs = _reads(proto)
        outputs = tuple(name for name in proto.output if name)
        is_constant = not _is_random(proto) and constant.issuperset(inputs)
        constant.update(outputs if is_constant else ())
        macs = 0 if is_constant or index not in alive else _macs(proto, shapes)
        nodes.append(Node(proto.op_type, inputs, outputs, macs, is_constant, index not in alive))
    return tuple(nodes)


def _alive(graph: onnx.GraphProto) -> set[int]:
    """Indices of the nodes that an output depends on."""
    needed, alive = {value.name for value in graph.output}, set()
    for index in reversed(range(len(graph.node))):
        if needed.intersection(name for name in graph.node[index].output if name):
            alive.add(index)
            needed.update(_reads(graph.node[index]))
    return alive


def _body_macs(body: onnx.GraphProto, shapes: Mapping[str, Shape]) -> int:
    inside = {**shapes, **_shapes(body)}
    return sum(_macs(node, inside) for node in body.node)


def _macs(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    """Multiply-adds of one node; 0 for operations that multiply nothing by weights."""
    bodies = _bodies(node)
    if bodies:
        return max(_body_macs(body, shapes) for body in bodies)
    out = shapes.get(node.output[0], ())
    if node.op_type in WEIGHT_INPUT:
        weight = shapes.get(node.input[WEIGHT_INPUT[node.op_type]], ())
        data = shapes.get(node.input[0], ()) if node.op_type == "ConvTranspose" else out
        return math.prod(data) * math.prod(weight[1:]) if weight and data else 0
    first = shapes.get(node.input[0], ()) if node.input else ()
    if node.op_type == "Gemm" and first:
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return math.prod(out) * first[0 if transposed else 1]
    if node.op_type in MATMUL and first and out:
        return math.prod(out) * first[-1]
    return 0
