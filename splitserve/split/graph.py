"""Read-only view of an ONNX graph: what is computed from what, in which shape, at which cost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx.inliner
from google.protobuf.message import EncodeError

from splitserve.errors import GraphError
from splitserve.split.infer import Shape, infer, known_shapes
from splitserve.split.model_file import read_model
from splitserve.split.shapes import Sizes, fix_shapes
from splitserve.tensors import TensorSpec

OPSET_MIN = 11
OPSET_RAISED = 13
STANDARD_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})

# Where each mixing operation keeps its weight; MatMul and Gemm multiply their last common axis.
WEIGHT_INPUT = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "ConvTranspose": 1}
MATMUL = frozenset({"MatMul", "MatMulInteger", "QLinearMatMul"})
# Two copies of these on two sides of a cut would draw different numbers.
RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial",
     "Bernoulli"}
)  # fmt: skip


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


def load_graph(path: Path, shapes: Mapping[str, Sizes] | None = None) -> GraphView:
    """Read an ONNX file and refuse what cannot be split, with the node and the reason.

    Args:
        path: the file; weights in files beside it are read too.
        shapes: sizes to fix, by input; see `fix_shapes`.

    Raises:
        UsageError: no such file, or shapes that are not those of the model's inputs.
        GraphError: not an ONNX model, or one with parts that this version does not split.
    """
    model = read_model(path)
    _refuse_old_opset(model, path)
    fix_shapes(model.graph, shapes or {})
    return view(model)


def view(model: onnx.ModelProto) -> GraphView:
    """Build the view of a parsed model; local functions are written out in place.

    Raises:
        GraphError: sparse initialisers, an opset below 11, a foreign operator domain, no input or
            output, or a graph that ONNX cannot infer shapes for.
    """
    _refuse_old_opset(model)
    try:
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        _refuse_parts(model.graph)
        inferred = infer(model)
    except onnx.shape_inference.InferenceError as error:
        raise GraphError(f"shapes cannot be inferred: {error}") from error
    except UnicodeDecodeError as error:
        raise GraphError(f"a name in the model is damaged: {error}") from error
    except EncodeError as error:
        raise GraphError(
            "over 2 GiB lie in local functions, Constant nodes or bodies of control flow; only"
            " initialisers of the graph itself may be that large"
        ) from error
    initialisers = {value.name for value in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initialisers]
    if not inputs:
        raise GraphError("the model has no input, so there is nothing to split")
    _refuse_odd_ends(model.graph)
    specs = inferred.specs
    missing = [v.name for v in (*inputs, *model.graph.output) if v.name not in specs]
    if missing:
        raise GraphError(f"{missing[0]}: not a dense tensor of known rank and a common dtype")
    return GraphView(
        model=model,
        inputs=tuple(specs[value.name] for value in inputs),
        outputs=tuple(specs[value.name] for value in model.graph.output),
        nodes=_nodes(inferred.graph, inferred.shapes, initialisers),
        specs=specs,
    )


def _refuse_old_opset(model: onnx.ModelProto, path: Path | None = None) -> None:
    if _opset(model) < OPSET_MIN:
        name = str(path or "model.onnx")
        command = (
            "import onnx, onnx.version_converter as v;"
            f" onnx.save(v.convert_version(onnx.load({name!r}), {OPSET_RAISED}), 'raised.onnx')"
        )
        raise GraphError(
            f"opset {_opset(model)}; splitserve reads opset {OPSET_MIN} and newer. ONNX itself"
            f' raises most models: python -c "{command}"'
        )


def _refuse_odd_ends(graph: onnx.GraphProto) -> None:
    names = [value.name for value in graph.output]
    if not graph.node:
        raise GraphError("the model has no node, so there is nothing to split")
    if not names:
        raise GraphError("the model has no output, so there is nothing to answer")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise GraphError(f"output {twice[0]!r} is listed {names.count(twice[0])} times")


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


def _nodes(
    graph: onnx.GraphProto, shapes: Mapping[str, Shape], initialisers: set[str]
) -> tuple[Node, ...]:
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
    inside = {**shapes, **known_shapes(body)}
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
