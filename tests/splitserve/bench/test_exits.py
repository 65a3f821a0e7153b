"""`splitserve bench exits`: decides as the agent does, and counts what it says it counts."""

import json
from pathlib import Path
from typing import Any

import pytest
from calibrated import write_scenes

from splitserve.artifact import load_artifact
from splitserve.calibrate import model_input, read_inputs
from splitserve.cli import main
from splitserve.exits import ExitHead, Gate
from splitserve.runtime import RuntimeOptions, open_chain

Capture = pytest.CaptureFixture[str]
COUNT = 60
ONE = RuntimeOptions(threads=1)


@pytest.fixture(scope="module")
def images(exit_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fresh")
    return write_scenes(folder, load_artifact(exit_artifact), range(2000, 2000 + COUNT))


def measured(artifact: Path, images: Path, capsys: Capture, *more: str) -> dict[str, Any]:
    words = ["bench", "exits", str(artifact), "--images", str(images), "--threads", "1", *more]
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_decisions_are_the_agents(exit_artifact: Path, images: Path, capsys: Capture):
    artifact = load_artifact(exit_artifact)
    cut = artifact.manifest.cuts[1].name
    found = measured(exit_artifact, images, capsys, "--cuts", cut, "--budgets", "70,30")
    assert found["pictures"] == COUNT
    assert [row["budget"] for row in found["rows"]] == [70, 30]
    chain = open_chain(artifact, ONE)
    inputs = read_inputs(images, artifact.manifest, 2000, 0)
    for row in found["rows"]:
        gate = Gate(ExitHead(artifact, 2, ONE), row["budget"])
        for pixels in inputs.pixels:
            gate.judge(chain.run(model_input(pixels, artifact.manifest), 0, 2))
        assert row["upload"] == pytest.approx(gate.budget.counts.upload, abs=0.01)
        assert row["codec"] == "step-ans"
        share = row["bytes_mean"] / row["bytes_mean_cloud_only"]
        assert share == pytest.approx(row["upload"] / 100, abs=0.1)
        assert {"top1", "top1_cloud_only", "top1_change", "early", "agreement"} <= row.keys()


def test_everything_uploaded_is_cloud_only(exit_artifact: Path, images: Path, capsys: Capture):
    (row, *_) = measured(exit_artifact, images, capsys, "--budgets", "100")["rows"]
    assert (row["upload"], row["upload_easier"], row["upload_harder"]) == (100, 100, 100)
    assert row["early"] is None
    assert row["agreement"] == row["agreement_cloud_only"]
    assert row["bytes_mean"] == row["bytes_mean_cloud_only"]
    assert row["top1_change"] == 0


def test_the_table_names_every_cut(exit_artifact: Path, images: Path, capsys: Capture):
    assert main(["bench", "exits", str(exit_artifact), "--images", str(images)]) == 0
    out, err = capsys.readouterr()
    for cut in load_artifact(exit_artifact).manifest.cuts:
        assert cut.name in out
        assert f"{cut.name}, everything by step-ans" in " ".join(err.split())


def test_called_wrongly(
    exit_artifact: Path, calibrated_artifact: Path, images: Path, scenes: Path, capsys: Capture
):
    for artifact, folder, why in (
        (calibrated_artifact, images, "has no exit"),
        (exit_artifact, scenes, "were given to the calibration"),
    ):
        assert main(["bench", "exits", str(artifact), "--images", str(folder)]) == 2
        assert why in " ".join(capsys.readouterr().err.split())
