"""`splitserve verify`: prove that tail(head(x)) equals model(x)."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from splitserve.artifact import Artifact, Preprocess, load_artifact
from splitserve.errors import UsageError
from splitserve.output import print_document
from splitserve.picture import list_pictures, read_picture
from splitserve.settings import Counts, Names, Settings
from splitserve.split.cuts import CutCandidate, find_cuts
from splitserve.split.frontier import find_frontier
from splitserve.split.graph import GraphView, load_graph
from splitserve.split.recipe import recipe_of
from splitserve.split.shapes import parse_shapes, sizes_of, warn_of_free_sizes
from splitserve.split.verify import TOLERANCE, CutError, compare_artifact, compare_cuts
from splitserve.tensors import DTYPES, Array, Tensors

SEED = 0


class Options(Settings):
    """Recompose a model from its parts and compare with the whole, on the same inputs.

    For an ONNX file every single-tensor cut is made and tried alone; for an artifact its segments
    are run in turn. Exit status 3 means that something differs.
    """

    model_config = SettingsConfigDict(
        cli_prog_name="splitserve verify", env_prefix="SPLITSERVE_VERIFY_"
    )

    target: CliPositionalArg[Path]
    """ONNX file, or artifact folder."""
    model: Path | None = None
    """The ONNX file that the artifact was made from."""
    shape: Names = Field(default=[])
    """Sizes of an ONNX file's free dimensions, `NAME=Nx3x320x320` for an input; N keeps one
    free. An artifact's own sizes are taken from its manifest."""
    frontier: bool = False
    """Of an ONNX file try the cuts of several tensors on the Pareto frontier too."""
    images: Path | None = None
    """Folder of pictures to compare on; without it, seeded random inputs are used."""
    batch: Counts = Field(default=[1, 3], min_length=1)
    """Batch sizes, comma-separated; a model with a fixed batch is run at that one."""
    as_json: bool = False
    """Print one JSON document."""


def run(options: Options) -> int:
    """Compare, print, and exit 3 when something differs."""
    console = Console(stderr=True)
    if options.target.is_dir():
        if options.model is None:
            raise UsageError("an artifact is compared with its model: add --model MODEL.onnx")
        artifact = load_artifact(options.target)
        graph = _same_sizes(options.model, artifact)
        _refuse_other_interface(graph, artifact)
        inputs = _inputs(graph, artifact.manifest.preprocess, options)
        steps: Iterable[CutError] = compare_artifact(graph, artifact, inputs)
        heads = sum(cut.fused_head is not None for cut in artifact.manifest.cuts)
        count = len(inputs) * (1 + heads)
    else:
        graph = load_graph(options.target, parse_shapes(options.shape))
        warn_of_free_sizes(graph.inputs)
        preprocess = recipe_of(graph.model, options.target.stem).preprocess
        inputs = _inputs(graph, preprocess, options)
        cuts = _cuts(graph, options)
        steps, count = compare_cuts(graph, cuts, inputs), len(cuts) * len(inputs)
    errors = list(track(steps, "verifying", total=count, console=console, transient=True))
    _report(errors, options)
    return 0 if all(error.is_good for error in errors) else 3


def _cuts(graph: GraphView, options: Options) -> list[CutCandidate]:
    """Every single-tensor cut, with --frontier also those of several tensors that are on it."""
    singles = find_cuts(graph)
    if not options.frontier:
        return singles
    with Console(stderr=True).status("searching the frontier"):
        cuts = {cut.head: cut for cut in (*singles, *find_frontier(graph))}
    return sorted(cuts.values(), key=lambda cut: cut.head.bit_count())


def _same_sizes(model: Path, artifact: Artifact) -> GraphView:
    """Load the model with the sizes that were fixed when the artifact was made."""
    try:
        return load_graph(model, sizes_of(artifact.manifest.inputs))
    except UsageError:  # other inputs or other sizes: told by the comparison of interfaces
        return load_graph(model)


def _refuse_other_interface(graph: GraphView, artifact: Artifact) -> None:
    manifest = artifact.manifest
    if (manifest.inputs, manifest.outputs) != (graph.inputs, graph.outputs):
        raise UsageError(
            f"the artifact's inputs and outputs are not those of the model; name with --model the"
            f" file it was made from: {manifest.model.name}, sha256 {manifest.model.sha256}"
        )


def _inputs(graph: GraphView, preprocess: Preprocess | None, options: Options) -> list[Tensors]:
    firsts = [spec.shape[0] for spec in graph.inputs if spec.shape]
    fixed = [size for size in firsts if isinstance(size, int)]
    batches = options.batch if len(fixed) < len(firsts) else fixed[:1] or [1]
    if options.images is None:
        return [_random(graph, batch) for batch in batches]
    if preprocess is None or len(graph.inputs) != 1:
        raise UsageError("--images needs a model with one input and a recipe with preprocessing")
    name = graph.inputs[0].name
    pictures = load_pictures(options.images, preprocess, max(batches))
    return [{name: np.concatenate(pictures[:batch])} for batch in batches]


def load_pictures(folder: Path, preprocess: Preprocess, count: int) -> list[Array]:
    """Read the first pictures of a folder as model inputs, repeating them when there are too few.

    Raises:
        UsageError: no picture in the folder.
    """
    paths = list_pictures(folder)
    values = [read_picture(path, preprocess) for path in paths[:count]]
    return [values[index % len(values)] for index in range(count)]


def _random(graph: GraphView, batch: int) -> Tensors:
    generator = np.random.default_rng(SEED)
    values = {}
    for spec in graph.inputs:
        shape = spec.concrete(batch)
        dtype = DTYPES[spec.dtype]
        values[spec.name] = (
            generator.standard_normal(shape).astype(dtype)
            if dtype.kind == "f"
            else generator.integers(0, 2, shape).astype(dtype)
        )
    return values


def _report(errors: list[CutError], options: Options) -> None:
    good = sum(error.is_good for error in errors)
    worst = max((error.relative for error in errors), default=0.0)
    if options.as_json:
        rows = [asdict(error) | {"is_good": error.is_good} for error in errors]
        print_document({"compared": len(errors), "good": good, "worst": worst, "rows": rows})
        return
    table = Table(title=escape(str(options.target)))
    table.add_column("cut", overflow="fold")
    for name in ("batch", "optimisations off", "on: relative error"):
        table.add_column(name, justify="right")
    for error in errors:
        exact = "equal bit for bit" if error.is_exact else "[red]differs[/]"
        style = "" if error.is_good else "red"
        table.add_row(
            escape(error.cut), str(error.batch), exact, f"{error.relative:.1e}", style=style
        )
    Console().print(table)
    inputs = f"pictures of {options.images}" if options.images else f"random inputs, seed {SEED}"
    Console(stderr=True).print(
        f"{good} of {len(errors)} comparisons good; worst relative error {worst:.1e}"
        f" (limit {TOLERANCE:.0e}); {inputs}",
        markup=False,
        soft_wrap=True,
    )
