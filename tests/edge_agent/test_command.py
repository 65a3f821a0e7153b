"""Which codec an agent takes by itself, and what it refuses before it starts."""

import json
import shutil
from pathlib import Path

import pytest

from edge_agent.command import default_codec
from splitserve.artifact import load_artifact
from splitserve.cli import main

Capture = pytest.CaptureFixture[str]
NO_CLOUD = "http://127.0.0.1:9"


def words(artifact: Path, *more: str) -> list[str]:
    cut = load_artifact(artifact).manifest.cuts[0].name
    return [
        "agent", "--artifact", str(artifact), "--source", str(artifact), "--cloud", NO_CLOUD,
        "--cut", cut, *more,
    ]  # fmt: skip


def test_the_default_is_the_best_codec_that_the_cut_has(
    tiny_artifact: Path, calibrated_artifact: Path
) -> None:
    plain, calibrated = (load_artifact(root) for root in (tiny_artifact, calibrated_artifact))
    cut = plain.manifest.cuts[0].name
    assert default_codec(plain, cut) == "affine-u8"
    assert default_codec(calibrated, cut) == "step-ans"
    for artifact in (plain, calibrated):
        assert default_codec(artifact, "input") == "jpeg"
        assert default_codec(artifact, "output") == "affine-u8"


def test_a_calibration_without_rates_leaves_the_default_alone(
    calibrated_artifact: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = shutil.copytree(calibrated_artifact, tmp_path / "a")
    fields = json.loads((folder / "manifest.json").read_text())
    fields["cuts"][0]["calibration"]["rates"] = []
    (folder / "manifest.json").write_text(json.dumps(fields))
    artifact = load_artifact(folder)
    assert default_codec(artifact, artifact.manifest.cuts[0].name) == "affine-u8"
    assert default_codec(artifact, artifact.manifest.cuts[1].name) == "step-ans"
    assert main(words(folder, "--codec", "step-ans")) == 2
    said = capsys.readouterr().err
    assert "--floors" in said
    assert "--codec affine-u8" in said


def test_step_ans_without_calibration_is_called_wrongly(
    tiny_artifact: Path, capsys: Capture
) -> None:
    assert main(words(tiny_artifact, "--codec", "step-ans")) == 2
    assert "splitserve calibrate" in capsys.readouterr().err


@pytest.mark.parametrize("quality", ["0", "100.5", "many"])
def test_a_quality_that_is_none_is_called_wrongly(
    calibrated_artifact: Path, capsys: Capture, quality: str
) -> None:
    assert main(words(calibrated_artifact, "--quality", quality)) == 2
    assert "--quality" in capsys.readouterr().err


def test_a_floor_that_no_rate_promises_names_those_there_are(
    calibrated_artifact: Path, capsys: Capture
) -> None:
    assert main(words(calibrated_artifact, "--quality", "99.99")) == 2
    assert "there are: 99.9, 99, 95" in capsys.readouterr().err
