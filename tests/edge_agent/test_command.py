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


def plan_file(folder: Path, artifact_id: str, cut: str = "output", codec: str = "none") -> Path:
    one = {"name": "edge", "cut": cut, "codec": codec, "bytes_up": 0, "edge_s": 0.1,
           "edge_p90_s": 0.1, "cloud_s": 0, "cloud_p90_s": 0}  # fmt: skip
    path = folder / "plan.json"
    path.write_text(json.dumps({"artifact_id": artifact_id, "options": [one]}))
    return path


def plan_words(artifact: Path, plan: Path, *more: str) -> list[str]:
    return ["agent", "--artifact", str(artifact), "--source", "-", "--plan", str(plan), *more]


CLOUD = ("--cloud", NO_CLOUD)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((*CLOUD, "--cut", "input"), "leave out --cut"),
        ((*CLOUD, "--codec", "raw"), "leave out --codec"),
        ((*CLOUD, "--quality", "90"), "leave out --quality"),
        ((), "add --cloud"),
    ],
)
def test_a_plan_file_excludes_a_fixed_plan_and_needs_a_cloud(
    tiny_artifact: Path, tmp_path: Path, capsys: Capture, more: tuple[str, ...], said: str
) -> None:
    plan = plan_file(tmp_path, load_artifact(tiny_artifact).id.hex())
    assert main(plan_words(tiny_artifact, plan, *more)) == 2
    assert said in capsys.readouterr().err


def test_a_plan_of_another_artifact_is_refused_with_the_fix(
    tiny_artifact: Path, tmp_path: Path, capsys: Capture
) -> None:
    plan = plan_file(tmp_path, "0" * 32)
    assert main(plan_words(tiny_artifact, plan, *CLOUD)) == 2
    error = capsys.readouterr().err
    assert load_artifact(tiny_artifact).id.hex() in error
    assert "splitserve plan" in error


def test_a_missing_plan_file_is_refused_with_the_fix(
    tiny_artifact: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert main(plan_words(tiny_artifact, tmp_path / "gone.json", *CLOUD)) == 2
    assert "splitserve plan" in capsys.readouterr().err


def test_a_plan_for_a_cut_that_is_not_there_names_those_there_are(
    tiny_artifact: Path, tmp_path: Path, capsys: Capture
) -> None:
    plan = plan_file(tmp_path, load_artifact(tiny_artifact).id.hex(), cut="nowhere")
    assert main(plan_words(tiny_artifact, plan, *CLOUD)) == 2
    assert "there are: input" in capsys.readouterr().err
