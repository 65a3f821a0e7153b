"""`splitserve bench codec` and `bench temporal`: pictures it may use, judges, axes, bytes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calibrated import moving_pixels
from PIL import Image
from rich.console import Console

from splitserve.artifact import Artifact, load_artifact, write_artifact
from splitserve.bench.order0 import Order0
from splitserve.bench.rates import Meter
from splitserve.bench.temporal import _Stream
from splitserve.calibrate import Inputs, model_input, read_inputs
from splitserve.cli import main
from splitserve.codec import Codecs, FeatureTables, StepAnsCodec, read_tables
from splitserve.runtime import RuntimeOptions, open_chain
from splitserve.wire import Request, Section, encode_frame

Capture = pytest.CaptureFixture[str]
COUNT = 20


@pytest.fixture(scope="module")
def artifact(calibrated_artifact: Path) -> Artifact:
    return load_artifact(calibrated_artifact)


@pytest.fixture(scope="module")
def images(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for seed in range(COUNT):
        (pixels,) = moving_pixels(artifact, 500 + seed, 1)
        Image.fromarray(pixels).save(folder / f"{seed:02}.png")
    return folder


@pytest.fixture(scope="module")
def inputs(artifact: Artifact, images: Path) -> Inputs:
    return read_inputs(images, artifact.manifest, 500, 0)


def changed(artifact: Artifact, target: Path, **change: Any) -> Artifact:
    """Copy an artifact with other fields of the manifest."""
    manifest = artifact.manifest.model_copy(update=change)
    files = {stored.file: artifact.read_file(stored) for stored in manifest.files}
    return write_artifact(target, manifest, files)


def words(artifact: Artifact, images: Path, tmp_path: Path, *more: str) -> list[str]:
    flags = ["--images", str(images), "-o", str(tmp_path / "out"), *more]
    return ["bench", "codec", str(artifact.root), *flags]


def test_pictures_of_the_calibration_are_refused(
    artifact: Artifact, images: Path, inputs: Inputs, tmp_path: Path, capsys: Capture
):
    names = (*sorted(inputs.names)[:3], "f" * 16)
    known = changed(artifact, tmp_path / "known", calibrated_on=names)
    assert main(words(known, images, tmp_path)) == 2
    assert "3 of 20 pictures were given to the calibration" in capsys.readouterr().err


@pytest.mark.parametrize("is_named", [True, False])
def test_other_pictures_are_measured(
    artifact: Artifact, images: Path, tmp_path: Path, capsys: Capture, is_named: bool
):
    names = ("f" * 16,) if is_named else ()
    known = changed(artifact, tmp_path / "known", calibrated_on=names)
    cut = known.manifest.cuts[-1].name
    more = ["--cuts", f"{cut},{cut}", "--qualities", "50"]
    assert main(words(known, images, tmp_path, *more)) == 0
    out, err = capsys.readouterr()
    assert ("20 pictures that the calibration was not given" in err) == is_named
    assert ("may be some of the calibration's" in err) != is_named
    assert out.count(f" {cut} ") >= 1


@pytest.mark.parametrize(("tolerance", "agreement"), [(1e-12, 0.0), (1e6, 100.0)])
def test_answers_are_judged_as_the_cut_was_calibrated(
    artifact: Artifact, inputs: Inputs, tmp_path: Path, tolerance: float, agreement: float
):
    first, *rest = artifact.manifest.cuts
    assert first.calibration is not None
    judged = {"agreement_is": "error", "tolerance": tolerance}
    calibration = first.calibration.model_copy(update=judged)
    cuts = (first.model_copy(update={"calibration": calibration}), *rest)
    meter = Meter(changed(artifact, tmp_path, cuts=cuts), inputs)
    rows = meter.measure(first.name, [50], Console(stderr=True))
    seen = {row["agreement"] for row in rows if row["codec"] == "step-ans"}
    assert seen == {agreement}


def test_the_bound_takes_the_axis_of_the_tables(
    artifact: Artifact, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
):
    def last_axis(content: bytes, egress: Sequence[Any]) -> list[FeatureTables | None]:
        (table,) = read_tables(content, egress)
        assert table is not None
        return [replace(table, axis=np.array(3))]

    monkeypatch.setattr("splitserve.bench.rates.read_tables", last_axis)
    bounds = Meter(artifact, inputs)._bounds(1)
    assert {b.coder._axis for b in bounds if isinstance(b.coder, Order0)} == {3}


def test_a_stream_counts_whole_request_frames(artifact: Artifact):
    codec = Codecs(artifact).encoder("step-ans", 1, 99)
    assert isinstance(codec, StepAnsCodec)
    chain, stream, known = open_chain(artifact, RuntimeOptions(threads=1)), _Stream(1), None
    for pixels in moving_pixels(artifact, 3, 3):
        (value,) = chain.run(model_input(pixels, artifact.manifest), 0, 1).values()
        symbols = codec.quantise(value)
        want = []
        for payload in (codec.pack(symbols), codec.pack(symbols, known)):
            sections = (Section(value.shape, payload),)
            frame = Request(bytes(16), artifact.id, 1, 5, sections, 1.0, codec.parameter)
            want.append(len(encode_frame(frame)))
        assert stream.send(codec, [value]) == (*want, True)
        known = symbols
