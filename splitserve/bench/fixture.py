"""The model and artifact that the measurements run on, kept between runs."""

from pathlib import Path

from splitserve.artifact import Artifact
from splitserve.split import choose_cuts, find_cuts, load_graph, mark_fused, recipe_of, split_model
from splitserve.split.command_export import CHECKOUT, export

MODEL = "efficientnet_lite0"


def prepared(build: Path) -> tuple[Path, Artifact]:
    """Export EfficientNet-Lite0 unless a file newer than its recipe is there; split it.

    Returns:
        The ONNX file, and the artifact with automatically chosen cuts.
    """
    folder, model = CHECKOUT / MODEL, build / f"{MODEL}.onnx"
    made = [path.stat().st_mtime for path in folder.iterdir()] if folder.is_dir() else [0.0]
    if not model.is_file() or model.stat().st_mtime < max(made):
        export(folder, model)
    graph = load_graph(model)
    cuts = choose_cuts(graph, mark_fused(graph, find_cuts(graph)))
    return model, split_model(graph, cuts, recipe_of(graph.model, MODEL), model, build / "artifact")
