"""`splitserve calibrate --exits`: what is stored, what is kept, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calibrated import write_scenes
from graphs import write_model
from networks import googlenet, unet

from splitserve.artifact import Manifest, load_artifact
from splitserve.calibrate import model_input, read_inputs
from splitserve.cli import main
from splitserve.errors import ArtifactError, IntegrityError
from splitserve.exits import ExitHead
from splitserve.runtime import RuntimeOptions, open_chain
from splitserve.split import choose_cuts, load_graph, recipe_of, split_model

Capture = pytest.CaptureFixture[str]
ONE = RuntimeOptions(threads=1)


def test_the_manifest_names_the_exit_and_survives_its_own_json(exit_artifact: Path, scenes: Path):
    artifact = load_artifact(exit_artifact)
    manifest = artifact.manifest
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    inputs = read_inputs(scenes, manifest, 500, 0)
    for position, cut in enumerate(manifest.cuts, 1):
        assert cut.exit is not None
        assert cut.exit.graph in manifest.files
        assert cut.exit.graph.file == f"e{position}-{cut.exit.graph.sha256[:8]}.onnx"
        assert (cut.exit.fitted_on, cut.exit.folds) == (120, 5)
        assert cut.exit.inputs_sha256 == inputs.sha256
        assert artifact.read_exit(position)
    assert artifact.read_exit(0) is artifact.read_exit(len(manifest.cuts) + 1) is None
    assert set(inputs.names) <= set(manifest.calibrated_on)


def test_an_artifact_without_exits_loads_unchanged(exit_artifact: Path, tmp_path: Path):
    """As one that was written before there were exits."""
    folder = shutil.copytree(exit_artifact, tmp_path / "old")
    fields = json.loads((folder / "manifest.json").read_text())
    for cut in fields["cuts"]:
        del cut["exit"]
    (folder / "manifest.json").write_text(json.dumps(fields))
    artifact = load_artifact(folder)
    assert [cut.exit for cut in artifact.manifest.cuts] == [None] * len(artifact.manifest.cuts)
    assert artifact.read_exit(1) is None


def test_the_exit_sees_what_the_model_sees(exit_artifact: Path, scenes: Path, tmp_path: Path):
    """The last cut is flat or nearly so: its exit is the model's own matrix over again."""
    artifact = load_artifact(exit_artifact)
    manifest, chain = artifact.manifest, open_chain(artifact, ONE)
    last = len(manifest.cuts)
    head = ExitHead(artifact, last, ONE)
    fresh = write_scenes(tmp_path / "fresh", artifact, range(1000, 1020))
    hits = []
    for pixels in read_inputs(fresh, manifest, 500, 0).pixels:
        features = chain.run(model_input(pixels, manifest), 0, last)
        outputs, confidence = head.run(features)
        shares, whole = outputs["logits"], chain.run(features, last, len(chain))["logits"]
        assert shares.shape == whole.shape
        assert confidence == shares.max()
        assert shares.sum() == pytest.approx(1, abs=1e-5)
        hits.append(shares.argmax() == whole.argmax())
    assert np.mean(hits) >= 0.9


def test_the_codecs_stay_as_they_are(exit_artifact: Path, calibrated_artifact: Path):
    before, after = (load_artifact(root) for root in (calibrated_artifact, exit_artifact))
    for old, new in zip(before.manifest.cuts, after.manifest.cuts, strict=True):
        assert new.calibration == old.calibration
        assert new.model_copy(update={"exit": None}) == old
    assert before.manifest.segments == after.manifest.segments


def test_calibrating_a_codec_anew_keeps_the_exits(
    exit_artifact: Path, scenes: Path, tmp_path: Path
):
    target, cut = tmp_path / "again", load_artifact(exit_artifact).manifest.cuts[-1].name
    words = ["--images", str(scenes), "--cuts", cut, "--floors", "90", "--limit", "20"]
    assert main(["calibrate", str(exit_artifact), "-o", str(target), *words]) == 0
    before, after = (load_artifact(root).manifest for root in (exit_artifact, target))
    assert [one.exit for one in after.cuts] == [one.exit for one in before.cuts]
    assert set(before.calibrated_on) <= set(after.calibrated_on)
    for stored in after.files:
        load_artifact(target).read_file(stored)


def test_both_are_made_in_one_go_and_reported(
    tiny_artifact: Path, scenes: Path, tmp_path: Path, capsys: Capture
):
    cut = load_artifact(tiny_artifact).manifest.cuts[-1].name
    words = ["--images", str(scenes), "--cuts", cut, "--exits", cut, "--floors", "90", "--json"]
    assert main(["calibrate", str(tiny_artifact), "-o", str(tmp_path / "a"), *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (
        [one["name"] for one in found["cuts"]] == [cut] == [one["name"] for one in found["exits"]]
    )
    assert found["exits"][0]["exit"]["fitted_on"] == 120
    assert load_artifact(tmp_path / "a").manifest.cuts[0].exit is None


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("break_it", [change_a_byte, Path.unlink])
def test_an_exit_that_is_not_what_the_manifest_says_is_refused(
    exit_artifact: Path, tmp_path: Path, break_it: Any, capsys: Capture
):
    folder = shutil.copytree(exit_artifact, tmp_path / "a")
    artifact = load_artifact(folder)
    name = artifact.manifest.cuts[0].exit.graph.file
    break_it(folder / name)
    with pytest.raises(IntegrityError, match=name):
        ExitHead(artifact, 1, ONE)
    assert main(["inspect", str(folder)]) == 1
    assert name in capsys.readouterr().err


def test_another_cuts_exit_is_refused(exit_artifact: Path, tmp_path: Path):
    folder = shutil.copytree(exit_artifact, tmp_path / "a")
    fields = json.loads((folder / "manifest.json").read_text())
    fields["cuts"][0]["exit"] = fields["cuts"][1]["exit"]
    (folder / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(ArtifactError, match=r"the exit at \w+ takes "):
        ExitHead(load_artifact(folder), 1, ONE)


def test_a_graph_that_gives_no_class_probabilities_is_refused(exit_artifact: Path, tmp_path: Path):
    folder = shutil.copytree(exit_artifact, tmp_path / "a")
    fields = json.loads((folder / "manifest.json").read_text())
    fields["cuts"][0]["exit"]["graph"] = {
        key: value for key, value in fields["segments"][1].items() if key != "macs"
    }
    (folder / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(ArtifactError, match="the exit at stem gives "):
        ExitHead(load_artifact(folder), 1, ONE)


@pytest.mark.parametrize(
    ("network", "cut", "why"),
    [(googlenet, "a", "the model has 2 outputs"), (unet, "up0", "judged by error")],
)
def test_a_model_that_is_no_classifier_gets_a_reason(
    network: Any, cut: str, why: str, tmp_path: Path, capsys: Capture
):
    model = write_model(network(), tmp_path / "model.onnx")
    graph = load_graph(model)
    split_model(
        graph, choose_cuts(graph, [cut]), recipe_of(graph.model, "m"), model, tmp_path / "a"
    )
    words = ["calibrate", str(tmp_path / "a"), "--images", str(tmp_path), "--exits", cut]
    assert main(words) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "--exits needs a classifier" in said
    assert why in said


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--exits-only"], "--exits CUT"),
        (["--exits", "nothing"], "no cut 'nothing'"),
        (["--exits", "output", "--exits-only"], "nothing to calibrate"),
        (["--exits", "stem", "--agreement", "error"], "judged by error"),
    ],
)
def test_called_wrongly(
    tiny_artifact: Path, scenes: Path, more: list[str], why: str, capsys: Capture
):
    assert main(["calibrate", str(tiny_artifact), "--images", str(scenes), *more]) == 2
    assert why in " ".join(capsys.readouterr().err.split())
