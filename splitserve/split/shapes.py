"""Sizes for a model's free dimensions: `--shape image=Nx3x320x320`."""

from collections.abc import Mapping, Sequence

import onnx
from rich.console import Console

from splitserve.errors import UsageError
from splitserve.tensors import TensorSpec

KEPT = frozenset({"N", "n", "?"})
SIZE_MAX = (1 << 31) - 1
FORM = (
    "write NAME=1x3x320x320; N or ? keeps a dimension as the model has it, sizes are 1 to"
    f" {SIZE_MAX}"
)

Sizes = tuple[int | None, ...]
"""One input's sizes; None keeps what the model says."""


def parse_shapes(texts: Sequence[str]) -> dict[str, Sizes]:
    """Read `NAME=SIZExSIZE...` for each input.

    Raises:
        UsageError: text of another form, a size out of range, or a name given twice.
    """
    shapes: dict[str, Sizes] = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        words = sizes.split("x")
        is_good = all(word in KEPT or _is_size(word) for word in words)
        if not name or not is_good:
            raise UsageError(f"--shape {text!r}: {FORM}")
        if name in shapes:
            raise UsageError(f"--shape names {name!r} twice")
        shapes[name] = tuple(None if word in KEPT else int(word) for word in words)
    return shapes


def _is_size(word: str) -> bool:
    is_short = len(word) <= len(str(SIZE_MAX))  # Python refuses to read numbers of any length
    return word.isdecimal() and is_short and 1 <= int(word) <= SIZE_MAX


def fix_shapes(graph: onnx.GraphProto, shapes: Mapping[str, Sizes]) -> None:
    """Write sizes over the free dimensions of a graph's inputs, in place.

    A free dimension has one size wherever its name stands, so fixing it in one input fixes it in
    the other inputs and in the outputs too.

    Raises:
        UsageError: no such input, another rank, or a size that the model fixes differently.
    """
    weights = {value.name for value in graph.initializer}
    inputs = {value.name: value for value in graph.input if value.name not in weights}
    fixed: dict[str, int] = {}
    for name, sizes in shapes.items():
        if name not in inputs:
            raise UsageError(f"--shape: no input {name!r}; there are: {', '.join(inputs)}")
        _fix(inputs[name], sizes, fixed)
    for value in (*graph.input, *graph.value_info, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in fixed:
                dim.dim_value = fixed[dim.dim_param]


def _fix(value: onnx.ValueInfoProto, sizes: Sizes, fixed: dict[str, int]) -> None:
    """Write the sizes of nameless dimensions; collect those of named ones."""
    dims = value.type.tensor_type.shape.dim
    if len(dims) != len(sizes):
        raise UsageError(f"--shape {value.name}: {len(sizes)} sizes where it has {len(dims)}")
    for axis, (dim, size) in enumerate(zip(dims, sizes, strict=True)):
        if size is None:
            continue
        name = dim.dim_param
        old = fixed.setdefault(name, size) if name else dim.dim_value
        if old not in (0, size):
            what = f"{name!r} is {old} already" if name else f"the model has {old}"
            raise UsageError(f"--shape {value.name}, axis {axis}: {size} where {what}")
        if not name:
            dim.dim_value = size


def sizes_of(specs: Sequence[TensorSpec]) -> dict[str, Sizes]:
    """Return the sizes that specs fix, in the form that `fix_shapes` takes."""
    return {
        spec.name: tuple(size if isinstance(size, int) else None for size in spec.shape)
        for spec in specs
    }


def warn_of_free_sizes(inputs: Sequence[TensorSpec]) -> None:
    """Say on stderr which dimensions besides the batch are free, and how to fix them."""
    for spec in inputs:
        free = [str(size) for size in spec.shape[1:] if isinstance(size, str)]
        if free:
            rest = "x".join(
                str(size) if isinstance(size, int) else f"<{size}>" for size in spec.shape[1:]
            )
            Console(stderr=True).print(
                f"{spec.name}: {', '.join(free)} free: each counts as 1 in shapes, bytes and"
                f" multiply-adds. Fix them with --shape '{spec.name}=Nx{rest}'",
                style="yellow",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
