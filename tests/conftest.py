"""Fixtures that several rooms use: models, artifacts and pictures, each made once per session."""

import importlib.util
import os
import shutil
from pathlib import Path

import hypothesis
import pytest
from calibrated import calibrate_tiny, write_scenes
from graphs import TINY_RECIPE, fork_net, write_model, write_tiny

from splitserve.artifact import load_artifact
from splitserve.cli import main
from splitserve.split import choose_cuts, load_graph, recipe_of, split_model
from splitserve.split.command_export import CHECKOUT, export

# Developers explore; a run of CI is the same each time, so that it judges the change alone.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")

PICTURES = ("coffee.png", "camera.png", "chelsea.png", "motorcycle_left.png", "rocket.jpg")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the operator's SPLITSERVE_* variables away from every test."""
    for name in list(os.environ):
        if name.upper().startswith("SPLITSERVE_"):
            monkeypatch.delenv(name)


def split_by_itself(model: Path, target: Path) -> Path:
    """Split as `splitserve split MODEL -o TARGET` does."""
    graph = load_graph(model)
    split_model(graph, choose_cuts(graph), recipe_of(graph.model, model.stem), model, target)
    return target


@pytest.fixture(scope="session")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EfficientNet-Lite0 as ONNX with its recipe inside; about 10 s, once per session."""
    path = tmp_path_factory.mktemp("lite0") / "efficientnet_lite0.onnx"
    export(CHECKOUT / "efficientnet_lite0", path)
    return path


@pytest.fixture(scope="session")
def lite0_artifact(lite0: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EfficientNet-Lite0's artifact folder with the cuts found by themselves; read only."""
    return split_by_itself(lite0, tmp_path_factory.mktemp("artifact") / "lite0")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ONNX file of graphs.tiny_net with recipe: image (batch, 3, 32, 32) to 10 logits."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.onnx")


@pytest.fixture(scope="session")
def tiny_artifact(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny_model's artifact folder with the cuts found by themselves; read only."""
    return split_by_itself(tiny_model, tmp_path_factory.mktemp("artifact") / "tiny")


@pytest.fixture(scope="session")
def calibrated_artifact(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny_artifact with tables and made-up rates for step-ans at every cut; read only."""
    target = tmp_path_factory.mktemp("artifact") / "calibrated"
    return calibrate_tiny(tiny_artifact, target).root


@pytest.fixture(scope="session")
def calibrated_fork(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated artifact of graphs.fork_net with the one cut a+b of two tensors; read only."""
    folder = tmp_path_factory.mktemp("fork")
    model = write_model(fork_net(), folder / "fork.onnx")
    graph = load_graph(model)
    split_model(graph, choose_cuts(graph, ["a+b"]), TINY_RECIPE, model, folder / "plain")
    return calibrate_tiny(folder / "plain", folder / "calibrated").root


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of five natural pictures, one of them grey, that come with scikit-image."""
    spec = importlib.util.find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    folder = tmp_path_factory.mktemp("pictures")
    for name in PICTURES:
        shutil.copy(Path(spec.origin).parent / "data" / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def scenes(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of 120 smooth pictures with labels, all different."""
    folder = tmp_path_factory.mktemp("scenes")
    return write_scenes(folder, load_artifact(tiny_artifact), range(120))


@pytest.fixture(scope="session")
def exit_artifact(
    calibrated_artifact: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """calibrated_artifact with an exit at every cut, fitted to `scenes`; read only."""
    target = tmp_path_factory.mktemp("artifact") / "exits"
    cuts = ",".join(cut.name for cut in load_artifact(calibrated_artifact).manifest.cuts)
    words = [str(calibrated_artifact), "-o", str(target), "--images", str(scenes)]
    assert main(["calibrate", *words, "--exits", cuts, "--exits-only", "--threads", "1"]) == 0
    return target
