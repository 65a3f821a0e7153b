"""Gates say what was missed, and refuse what is no archive of pictures."""

from pathlib import Path

import numpy as np
import pytest

from splitserve.bench.cifar import read_pictures
from splitserve.bench.gates.command import MEASUREMENTS
from splitserve.bench.gates.gate import Gate, as_table
from splitserve.cli import main
from splitserve.errors import UsageError


@pytest.mark.parametrize(
    ("counted", "is_least", "is_met"),
    [(1.0, True, True), (0.99, True, False), (1.0, False, True), (1.01, False, False)],
)
def test_a_gate_is_met_on_one_side_of_its_limit(counted: float, is_least: bool, is_met: bool):
    gate = Gate("X1", "what", "figure", np.float32(counted), 1.0, is_least)
    assert gate.is_met is is_met
    assert gate.as_row()["is_met"] is is_met
    assert as_table([gate.as_row()], "one").row_count == 1


def test_a_figure_that_is_none_is_not_met():
    assert not Gate("X1", "what", "nan", float("nan"), 1.0).is_met


def test_an_archive_becomes_pictures_and_labels(tmp_path: Path):
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(5))
    pictures, labels = read_pictures(tmp_path / "a.npz")
    assert pictures.shape == (5, 3, 32, 32)
    assert pictures[1, 2, 3, 4] == np.float32(images[1, 3, 4, 2]) / np.float32(255)
    assert labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_what_is_no_archive_is_refused(content: bytes, tmp_path: Path):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UsageError, match=r"an \.npz of images and labels is needed"):
        read_pictures(tmp_path / "a.npz")


def test_a_measurement_that_is_not_there_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", "gates", "w", "--test", "t", "--train", "t", "--only", "magic"]
    assert main(words) == 2
    assert "there are: " + ", ".join(MEASUREMENTS) in " ".join(capsys.readouterr().err.split())
