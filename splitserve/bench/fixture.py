"""The model and artifact that the measurements run on, kept between runs."""

from pathlib import Path

from splitserve.artifact import Artifact
from splitserve.split import choose_cuts, load_graph, recipe_of, split_model
from splitserve.split.command_export import CHECKOUT, export

MODEL = "efficientnet_lite0"


def exported(build: Path) -> Path:
    """Return EfficientNet-Lite0 as ONNX, exported unless a file newer than its recipe is there."""
    folder, model = CHECKOUT / MODEL, build / f"{MODEL}.onnx"
    made = [path.stat().st_mtime for path in folder.iterdir()] if folder.is_dir() else [0.0]
    if not model.is_file() or model.stat().st_mtime < max(made):
        export(folder, model)
    return model


def prepared(build: Path) -> tuple[Path, Artifact]:
    """Return the model, and its artifact with automatically chosen cuts."""
    model = exported(build)
    graph = load_graph(model)
    cuts = choose_cuts(graph)
    return model, split_model(graph, cuts, recipe_of(graph.model, MODEL), model, build / "artifact")
