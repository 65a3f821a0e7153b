"""Cut every network of a folder at every single tensor and compare with the whole network.

Usage: python tests/verify_models.py FOLDER [--build build]

FOLDER holds ONNX files, and safetensors files whose networks are known here by the names of their
tensors. EfficientNet-Lite0 to Lite2 are exported and tried too. One table comes out; exit status 3
means that something differs.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
from graphs import floats
from networks import Builder
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file

from splitserve.errors import SplitServeError
from splitserve.runtime import Graph, RuntimeOptions
from splitserve.split import compare_cuts, find_cuts, load_graph
from splitserve.split.command_export import CHECKOUT, export
from splitserve.split.graph import OPSET_MIN, OPSET_RAISED, GraphView
from splitserve.split.shapes import sizes_of
from splitserve.tensors import DTYPES, Tensors

LITE = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
BATCHES = (1, 3)
SIDE = 64  # for free heights and widths: every stride divides it
COLUMNS = ("model", "opset", "nodes", "single cuts", "exact", "worst relative", "note")

Weights = dict[str, np.ndarray]


class Weighted(Builder):
    """A builder whose weights come from a file."""

    def __init__(self, values: Weights) -> None:
        super().__init__()
        self._values = values

    def known(self, name: str, source: str, result: str, **attributes: object) -> str:
        """Convolution with the file's weight and bias of a name."""
        ends = [f"{name}.{end}" for end in ("weight", "bias")]
        for end in ends:
            self.constant(end, self._values[end])
        return self.add("Conv", result, source, *ends, **attributes)

    def active(self, name: str, source: str, **attributes: object) -> str:
        return self.add("Relu", name, self.known(name, source, f"{name}.conv", **attributes))


def espcn(values: Weights) -> onnx.ModelProto:
    """ESPCN: four convolutions on luma, then three by three pixels from nine channels."""
    made = Weighted(values)
    last = made.active("c1", "luma", pads=[2] * 4)
    for name in ("c2", "c3"):
        last = made.active(name, last, pads=[1] * 4)
    made.known("c4", last, "c4", pads=[1] * 4)
    made.add("DepthToSpace", "large", "c4", blocksize=3, mode="CRD")
    return made.model(
        [floats("luma", ["batch", 1, 80, 80])], [floats("large", ["batch", 1, 240, 240])]
    )


def squeezenet(values: Weights) -> onnx.ModelProto:
    """SqueezeNet 1.1 up to the mean over its last convolution."""
    made = Weighted(values)
    last = made.active("conv1", "image", strides=[2, 2])
    for index in range(2, 10):
        if index in (2, 4, 6):
            last = made.add("MaxPool", f"pool{index}", last, kernel_shape=[3, 3], strides=[2, 2])
        squeezed = made.active(f"fire{index}.squeeze", last)
        wide = [
            made.active(f"fire{index}.expand1", squeezed),
            made.active(f"fire{index}.expand3", squeezed, pads=[1] * 4),
        ]
        last = made.add("Concat", f"fire{index}", *wide, axis=1)
    made.add("GlobalAveragePool", "mean", made.active("conv10", last))
    made.add("Flatten", "scores", "mean", axis=1)
    return made.model(
        [floats("image", ["batch", 3, 224, 224])], [floats("scores", ["batch", 1000])]
    )


BUILT: dict[str, Callable[[Weights], onnx.ModelProto]] = {
    "c4.weight": espcn,
    "fire9.squeeze.weight": squeezenet,
}
RECIPES = {"layer3.0.conv1.weight": "cifar_resnet", "conv8.weight": "cifar_resnet8"}


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    cells: tuple[str, ...]
    is_good: bool


def to_onnx(path: Path, target: Path) -> None:
    """Make an ONNX file of a safetensors file whose network is known."""
    values = load_file(path)
    for key, name in RECIPES.items():
        if key in values:
            return export(CHECKOUT / name, target, path)
    for key, build in BUILT.items():
        if key in values:
            return onnx.save(build(values), target)
    raise SplitServeError("no network is known for these tensors")


def prepared(path: Path, build: Path) -> tuple[Path, str]:
    """Return an ONNX file that splitserve reads, and what was done for it."""
    target = build / f"{path.stem}.onnx"
    if path.suffix == ".safetensors":
        to_onnx(path, target)
        return target, "weights from safetensors"
    opset = next(entry.version for entry in onnx.load(path).opset_import if not entry.domain)
    if opset >= OPSET_MIN:
        return path, ""
    model = onnx.load(path)
    raised = onnx.version_converter.convert_version(model, OPSET_RAISED)
    onnx.save(raised, target)
    options = RuntimeOptions(optimise=False)
    old, new = (Graph(m.SerializeToString(), options) for m in (model, raised))
    inputs = inputs_of(load_graph(target), 1)
    same = all(
        np.array_equal(value, new.run(inputs)[key]) for key, value in old.run(inputs).items()
    )
    return target, f"raised from opset {opset}, {'equal bit for bit' if same else 'DIFFERS'}"


def inputs_of(graph: GraphView, batch: int) -> Tensors:
    generator = np.random.default_rng(0)
    return {
        spec.name: generator.standard_normal(spec.concrete(batch)).astype(DTYPES[spec.dtype])
        for spec in graph.inputs
    }


def fixed(path: Path) -> tuple[GraphView, str]:
    """Load a model; free sizes besides the batch become SIDE."""
    graph = load_graph(path)
    shapes = {
        name: (sizes[0], *(size or SIDE for size in sizes[1:]))
        for name, sizes in sizes_of(graph.inputs).items()
    }
    is_free = shapes != sizes_of(graph.inputs)
    words = [
        f"--shape {name}={'x'.join(str(size or 'N') for size in sizes)}"
        for name, sizes in shapes.items()
    ]
    return (load_graph(path, shapes), " ".join(words)) if is_free else (graph, "")


def judge(name: str, path: Path, build: Path) -> Row:
    """Try every single cut of one model."""
    try:
        file, note = prepared(path, build)
        graph, shape = fixed(file)
        is_free = any(isinstance(spec.shape[0], str) for spec in graph.inputs)
        inputs = [inputs_of(graph, batch) for batch in (BATCHES if is_free else (1,))]
        cuts = find_cuts(graph)
        errors = list(compare_cuts(graph, cuts, inputs))
    except SplitServeError as error:
        return Row(name, ("", "", "", "", "", f"refused: {error}"), is_good=False)
    exact = sum(error.is_exact for error in errors)
    worst = max((error.relative for error in errors), default=0.0)
    notes = [text for text in (note, shape, "" if is_free else "batch fixed at 1") if text]
    cells = (str(graph.opset), str(len(graph.nodes)), str(len(cuts)), f"{exact} of {len(errors)}")
    good = all(error.is_good for error in errors)
    return Row(name, (*cells, f"{worst:.1e}", "; ".join(notes)), good)


def models_of(folder: Path, build: Path) -> Iterator[tuple[str, Path]]:
    for name in LITE:
        path = build / f"{name}.onnx"
        if not path.is_file():
            export(CHECKOUT / name, path)
        yield name, path
    for path in sorted(folder.iterdir()):
        if path.suffix in (".onnx", ".safetensors"):
            yield path.stem, path


def show(rows: Iterable[Row]) -> None:
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(row.name, *row.cells, style="" if row.is_good else "red")
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--build", type=Path, default=Path("build"))
    options = parser.parse_args()
    if not options.folder.is_dir():
        parser.error(f"no folder {options.folder}")
    options.build.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, path in models_of(options.folder, options.build):
        Console(stderr=True).print(name, style="dim")
        rows.append(judge(name, path, options.build))
    show(rows)
    return 0 if all(row.is_good for row in rows) else 3


if __name__ == "__main__":
    sys.exit(main())
