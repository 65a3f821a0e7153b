"""`splitserve defend`, and that device, cloud, profile and calibration keep to it."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cloud_service.tail import Tail
from edge_agent.head import Head
from splitserve.artifact import Artifact, Noise, Subset, Withdrawn, load_artifact
from splitserve.audit.defences import parse_defence
from splitserve.calibrate import read_inputs
from splitserve.calibrate.inputs import model_input
from splitserve.calibrate.whole import _Answers
from splitserve.cli import main
from splitserve.codec import RawCodec
from splitserve.errors import ContractError, UsageError
from splitserve.profile.carrier import list_carriers
from splitserve.runtime import RuntimeOptions, open_chain
from splitserve.wire import NO_ID, Request, Section

Capture = pytest.CaptureFixture[str]


def defended(source: Path, target: Path, *more: str) -> Artifact:
    shutil.copytree(source, target)
    name = load_artifact(target).manifest.cuts[0].name
    assert main(["defend", str(target), "--cut", name, *more]) == 0
    return load_artifact(target)


def test_the_manifest_holds_it_and_drops_what_no_longer_holds(
    calibrated_artifact: Path, photographs: Path, tmp_path: Path, capsys: Capture
) -> None:
    before = load_artifact(calibrated_artifact)
    more = ("--defence", "noise:0.01", "--images", str(photographs), "--json")
    after = defended(calibrated_artifact, tmp_path / "a", *more)
    first, *rest = after.manifest.cuts
    assert isinstance(first.defence, Noise)
    assert first.defence.deviations[0] > 0
    assert (first.calibration, first.leakage) == (None, None)
    assert rest == list(before.manifest.cuts[1:])
    assert after.id != before.id
    printed = json.loads(capsys.readouterr().out)
    assert printed["id"] == after.id.hex()
    assert printed["cuts"][first.name]["agreement"]["value"] <= 100
    assert main(["defend", str(after.root), "--cut", first.name, "--defence", "none"]) == 0
    assert load_artifact(after.root).manifest.cuts[0].defence is None


def test_the_device_sends_constants_for_channels_that_are_left_out(
    calibrated_artifact: Path, photographs: Path, tmp_path: Path
) -> None:
    more = ("--defence", "channels:0.5", "--images", str(photographs))
    artifact = defended(calibrated_artifact, tmp_path / "a", *more)
    cut = artifact.manifest.cuts[0]
    assert isinstance(cut.defence, Subset)
    chain = open_chain(artifact, RuntimeOptions())
    head = Head(artifact, chain)
    work = head.run((photographs / "00.png").read_bytes(), head.plan(cut.name, "raw"))
    (section,) = work.sections
    features = RawCodec().decode(memoryview(section.payload), section.shape, "float32")
    constants = cut.defence.constants[0]
    assert sum(value is None for value in constants) == (len(constants) + 1) // 2
    for channel, value in enumerate(constants):
        if value is not None:
            assert features[0, channel] == pytest.approx(value, abs=1e-2)
    plain = work.tensors[cut.egress[0].name]
    assert np.abs(plain - features).max() > 0.1, "the device keeps its own features whole"


def test_nothing_crosses_a_withdrawn_cut_on_either_side(
    calibrated_artifact: Path, tmp_path: Path
) -> None:
    artifact = defended(calibrated_artifact, tmp_path / "a", "--defence", "withdrawn")
    cut = artifact.manifest.cuts[0]
    assert isinstance(cut.defence, Withdrawn)
    chain = open_chain(artifact, RuntimeOptions())
    with pytest.raises(UsageError, match="withdrawn"):
        Head(artifact, chain).plan(cut.name, "raw")
    zeros = np.zeros(cut.egress[0].concrete(), np.float32)
    payload = RawCodec().encode(zeros)
    request = Request(NO_ID, artifact.id, 1, RawCodec.number, (Section(zeros.shape, payload),), 1.0)
    with pytest.raises(ContractError, match="withdrawn"):
        Tail(artifact, chain).answer(request)
    Tail(artifact, chain).check(dataclasses.replace(request, cut=0, sections=(
        Section(artifact.manifest.inputs[0].concrete(), b""),)))  # fmt: skip
    assert {carrier.position for carrier in list_carriers(artifact, (), ())} == {
        position for position in range(len(chain)) if position != 1
    }


def test_profiles_and_calibration_measure_behind_the_defence(
    calibrated_artifact: Path, photographs: Path, tmp_path: Path
) -> None:
    more = ("--defence", "noise:4rms", "--images", str(photographs))
    artifact = defended(calibrated_artifact, tmp_path / "a", *more)
    carrier = next(one for one in list_carriers(artifact, (), ()) if one.position == 1)
    zeros = [np.zeros(spec.concrete(), np.float32) for spec in artifact.manifest.egress(1)]
    (found,) = carrier.decode(carrier.encode(zeros), zeros)
    assert found.std() > 0
    inputs = read_inputs(photographs, artifact.manifest, 20, 0)
    chain = open_chain(artifact, RuntimeOptions())
    met = _Answers(artifact, chain, inputs, 0).material(1, 0).fit[0]
    pixels = model_input(inputs.pixels[0], artifact.manifest)
    name = artifact.manifest.cuts[0].egress[0].name
    apart = met[name] - chain.run(pixels, 0, 1)[name]
    assert isinstance(artifact.manifest.cuts[0].defence, Noise)
    deviation = artifact.manifest.cuts[0].defence.deviations[0]
    assert apart.std() == pytest.approx(deviation, rel=0.1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("noise", "no defence 'noise'; there is"),
        ("noise:0", "no defence"),
        ("noise:1bit", "no defence"),
        ("channels:1", "keeps every channel"),
        ("step:2.5bit", "whole bits"),
        ("step:99bit", "whole bits"),
        ("blur:3", "no defence"),
    ],
)
def test_what_is_no_defence_is_refused(text: str, reason: str):
    with pytest.raises(UsageError, match=reason):
        parse_defence(text)


def test_a_defence_that_is_fitted_needs_pictures(calibrated_artifact: Path, capsys: Capture):
    name = load_artifact(calibrated_artifact).manifest.cuts[0].name
    words = ["defend", str(calibrated_artifact), "--cut", name, "--defence", "step:4bit"]
    assert main(words) == 2
    assert "--images DIR" in capsys.readouterr().err
