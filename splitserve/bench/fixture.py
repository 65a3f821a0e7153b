"""The model and artifact that the measurements run on, kept between runs."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.progress import Progress

from splitserve.artifact import Artifact, load_artifact
from splitserve.bench.samples import SAMPLES, write_views
from splitserve.calibrate import Task, calibrate_artifact, make_judge, read_inputs
from splitserve.errors import ArtifactError
from splitserve.split import choose_cuts, load_graph, recipe_of, split_model
from splitserve.split.command_export import CHECKOUT, export

MODEL = "efficientnet_lite0"
VIEWS = 32
FLOORS = (99.0, 95.0)
SEED = 20_000  # far from the demo's


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


def calibrated(build: Path, cuts: Sequence[str], progress: Progress) -> Artifact:
    """Return the prepared artifact, calibrated on views of the samples.

    As an operator would on a camera's pictures: the same five scenes, other views than the demo's.

    Args:
        build: folder that keeps it between runs.
        cuts: which must be calibrated.
        progress: shows the calibration, which is done when the model or its cuts are new.
    """
    plain, target = load_artifact(build / "artifact"), build / "calibrated"
    if (known := _known(target, plain, cuts)) is not None:
        return known
    with tempfile.TemporaryDirectory() as folder:
        write_views(Path(folder), VIEWS, SEED, whole_first=False)
        inputs = read_inputs(Path(folder), plain.manifest, VIEWS * len(SAMPLES), SEED)
    task = Task(
        positions=[plain.manifest.position(name) for name in cuts],
        floors=FLOORS,
        judge=make_judge(plain.manifest.outputs, None, tolerance=0.05),
    )
    return calibrate_artifact(plain, inputs, task, target, progress)


def _known(target: Path, plain: Artifact, cuts: Sequence[str]) -> Artifact | None:
    """The artifact calibrated before, if it is of the same segments."""
    try:
        known = load_artifact(target)
    except ArtifactError:
        return None
    done = {cut.name for cut in known.manifest.cuts if cut.calibration}
    is_same = known.manifest.segments == plain.manifest.segments
    return known if is_same and done.issuperset(cuts) else None
