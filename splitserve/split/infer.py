"""Shapes of a model's tensors: inferred with names, and settled by trying two sets of sizes.

ONNX loses track of a size that is computed, as by Shape, Gather and Reshape, and exporters give one
name to sizes that differ. Both show when the free dimensions of the inputs get numbers: a size that
stays the same is fixed, one that equals an input's is that one.
"""

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from pydantic import ValidationError

from splitserve.errors import GraphError, RuntimeFailureError
from splitserve.runtime import write_optimised
from splitserve.split.model_file import runnable, without_weights
from splitserve.tensors import DTYPES, TensorSpec

Shape = tuple[int, ...]

# First axes against the others: of another ratio, so that no quotient of one equals the other.
FIRST = (7, 11)
OTHER = (64, 96)


@dataclass(frozen=True, slots=True)
class Inferred:
    """What is known of a model's tensors.

    Args:
        specs: dtype and shape of every tensor of known rank; the same name means the same size.
        shapes: shapes when every free dimension is 1.
        graph: the graph without large weights, its bodies with such shapes too.
    """

    specs: Mapping[str, TensorSpec]
    shapes: Mapping[str, Shape]
    graph: onnx.GraphProto


def infer(model: onnx.ModelProto) -> Inferred:
    """Infer dtype and shape of every tensor, as far as they can be known.

    Raises:
        onnx.shape_inference.InferenceError: ONNX finds a contradiction.
    """
    light = without_weights(model)
    graph = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    specs = {value.name: spec for value in _values(graph) if (spec := _spec(value)) is not None}
    places = _Places.of([specs[value.name] for value in graph.input if value.name in specs])
    small = onnx.shape_inference.infer_shapes(_at(light, {}), data_prop=True).graph
    shapes = known_shapes(small)
    if _is_open(light.graph, specs, places, shapes):
        trials = [_folded_shapes(model, places.sizes(trial)) for trial in range(len(FIRST))]
        for value in _values(graph):
            if value.name not in specs and all(value.name in trial for trial in trials):
                value.type.tensor_type.shape.dim.extend(
                    onnx.TensorShapeProto.Dimension() for _ in trials[0][value.name]
                )
                specs.update({spec.name: spec for spec in (_spec(value),) if spec})
        specs, shapes = _settle(specs, places, trials), {**_folded_shapes(model, {}), **shapes}
    return Inferred(specs, shapes, small)


def _is_open(
    graph: onnx.GraphProto,
    specs: Mapping[str, TensorSpec],
    places: "_Places",
    shapes: Mapping[str, Shape],
) -> bool:
    """Whether a size has a name that no input has, or a shape is not known at all."""
    sizes = {size for spec in specs.values() for size in spec.shape if isinstance(size, str)}
    made = {name for node in graph.node for name in node.output if name}
    return not (sizes <= places.numbers.keys() and made <= shapes.keys())


def _at(model: onnx.ModelProto, sizes: Mapping[str, int]) -> onnx.ModelProto:
    """Copy a model with numbers for the free dimensions of its inputs, by default 1."""
    frozen = onnx.ModelProto()
    frozen.CopyFrom(model)
    for value in frozen.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_value < 1:
                dim.dim_value = sizes.get(_name(value, axis, dim), 1)
    del frozen.graph.value_info[:]
    for value in frozen.graph.output:
        value.type.tensor_type.ClearField("shape")
    return frozen


def _folded_shapes(model: onnx.ModelProto, sizes: Mapping[str, int]) -> dict[str, Shape]:
    """Shapes that are known once ONNX Runtime has computed what does not depend on the input.

    Nothing is known where it refuses these sizes.
    """
    with tempfile.TemporaryDirectory() as folder, runnable(_at(model, sizes)) as source:
        path = Path(folder) / "folded.onnx"
        try:
            write_optimised(source, path, fuse=False)
        except RuntimeFailureError:
            return {}
        folded = onnx.load(str(path), load_external_data=False)
    return known_shapes(onnx.shape_inference.infer_shapes(folded, data_prop=True).graph)


def known_shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    """Shape of every tensor whose sizes are all known."""
    shapes = {value.name: tuple(value.dims) for value in graph.initializer}
    for value in _values(graph):
        shape = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        if value.type.tensor_type.HasField("shape") and all(size > 0 for size in shape):
            shapes.setdefault(value.name, shape)
    return shapes


@dataclass(frozen=True, slots=True)
class _Places:
    """Free dimensions of the inputs: the numbers that stand for each in the two trials."""

    numbers: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, inputs: Iterable[TensorSpec]) -> "_Places":
        numbers: dict[str, tuple[int, ...]] = {}
        for spec in inputs:
            for axis, size in enumerate(spec.shape):
                if isinstance(size, str) and size not in numbers:
                    factor, base = len(numbers) + 1, OTHER if axis else FIRST
                    numbers[size] = tuple(factor * number for number in base)
        return cls(numbers)

    def sizes(self, trial: int) -> dict[str, int]:
        return {name: numbers[trial] for name, numbers in self.numbers.items()}


def _settle(
    specs: Mapping[str, TensorSpec], places: _Places, trials: list[dict[str, Shape]]
) -> dict[str, TensorSpec]:
    names = {numbers: name for name, numbers in places.numbers.items()}
    seen: dict[str, set[tuple[int, ...]]] = {}
    for spec in specs.values():
        for axis, size in enumerate(spec.shape):
            if isinstance(size, str):
                seen.setdefault(size, set()).add(_tried(trials, spec.name, axis))

    def settled(spec: TensorSpec, axis: int, size: int | str) -> int | str:
        tried = _tried(trials, spec.name, axis)
        if isinstance(size, int) or size in places.numbers:
            return size
        if tried and len(set(tried)) == 1:
            return tried[0]
        other = size if len(seen[size]) == 1 else f"{spec.name}.{axis}"
        return names.get(tried, other)

    return {
        name: TensorSpec(
            name=name,
            dtype=spec.dtype,
            shape=tuple(settled(spec, axis, size) for axis, size in enumerate(spec.shape)),
        )
        for name, spec in specs.items()
    }


def _tried(trials: list[dict[str, Shape]], name: str, axis: int) -> tuple[int, ...]:
    """Sizes of one dimension in both trials; nothing where one of them is unknown."""
    if not all(name in shapes for shapes in trials):
        return ()
    return tuple(shapes[name][axis] for shapes in trials)


def _values(graph: onnx.GraphProto) -> Iterable[onnx.ValueInfoProto]:
    return (*graph.input, *graph.value_info, *graph.output)


def _name(value: onnx.ValueInfoProto, axis: int, dim: onnx.TensorShapeProto.Dimension) -> str:
    return dim.dim_param or f"{value.name}.{axis}"


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
    dims = tuple(
        dim.dim_value if dim.dim_value > 0 else _name(value, axis, dim)
        for axis, dim in enumerate(kind.shape.dim)
    )
    try:
        return TensorSpec(name=value.name, dtype=dtype, shape=dims)
    except ValidationError as error:  # a damaged file may hold bytes where text belongs
        raise GraphError(f"the name or shape of tensor {value.name!r} is damaged") from error
