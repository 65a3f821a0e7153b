"""`splitserve bench accuracy`: top-1 and top-5 of a model on labelled pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic_settings import SettingsConfigDict
from rich.console import Console
from rich.progress import track

from splitserve.bench.fixture import exported
from splitserve.errors import UsageError
from splitserve.output import print_document
from splitserve.picture import read_labels, read_picture
from splitserve.runtime import Graph, RuntimeOptions
from splitserve.settings import Settings
from splitserve.split import load_graph, recipe_of


class Options(Settings):
    """Measure top-1 and top-5 through our own preprocessing.

    The folder holds the pictures and labels.csv with the columns file and label (class index).
    """

    model_config = SettingsConfigDict(
        cli_prog_name="splitserve bench accuracy", env_prefix="SPLITSERVE_BENCH_ACCURACY_"
    )

    images: Path
    """Folder with labels.csv."""
    model: Path | None = None
    """ONNX file with an embedded recipe; by default EfficientNet-Lite0, exported when needed."""
    build: Path = Path("build")
    """Folder that keeps the exported model between runs."""
    as_json: bool = False
    """Print one JSON document."""


def run(options: Options) -> int:
    """Measure and print."""
    console = Console(stderr=True)
    pictures = read_labels(options.images)
    with console.status("preparing the model (exported once)"):
        model = options.model or exported(options.build)
    ranks = _ranks(model, pictures, console)
    top1, top5 = (float(np.mean([rank < k for rank in ranks])) for k in (1, 5))
    error = float(np.sqrt(top1 * (1 - top1) / len(ranks)))
    result = {"pictures": len(ranks), "top1": top1, "top5": top5, "top1_standard_error": error}
    if options.as_json:
        print_document(result)
    else:
        Console().print(
            f"{model.stem} on {options.images.name}: top-1 {top1:.1%} (standard error"
            f" {error:.1%}), top-5 {top5:.1%}, {len(ranks)} pictures",
            highlight=False,
        )
    return 0


def _ranks(model: Path, pictures: Sequence[tuple[Path, int]], console: Console) -> list[int]:
    """Rank of the right class per picture, 0 for the first."""
    graph = load_graph(model)
    preprocess = recipe_of(graph.model, model.stem).preprocess
    if preprocess is None:
        raise UsageError(f"{model}: no preprocessing inside; make it with splitserve export")
    loaded = Graph(model.read_bytes(), RuntimeOptions())
    ranks = []
    for path, label in track(pictures, "measuring", console=console, transient=True):
        values = read_picture(path, preprocess)
        scores = loaded.run({loaded.inputs[0]: values})[loaded.outputs[0]][0]
        ranks.append(int((scores > scores[label]).sum()))
    return ranks
