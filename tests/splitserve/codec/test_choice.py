"""The codecs of one artifact: by name and quality for the sender, by number for the receiver."""

import gc
import shutil
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from calibrated import PARAMETERS

from splitserve.artifact import Artifact, Rate, load_artifact, write_artifact
from splitserve.codec import CODECS, Codecs, StepAnsCodec
from splitserve.codec.choice import CACHED_CODECS
from splitserve.errors import CodecError, IntegrityError, UsageError


@pytest.fixture(scope="module")
def artifact(calibrated_artifact: Path) -> Artifact:
    return load_artifact(calibrated_artifact)


@pytest.fixture(scope="module")
def codecs(artifact: Artifact) -> Codecs:
    return Codecs(artifact)


def with_rates(artifact: Artifact, target: Path, rates: Sequence[Rate]) -> Artifact:
    """A copy whose first cut has other rates, and whose second has none."""
    first, second, *rest = artifact.manifest.cuts
    assert first.calibration is not None
    calibration = first.calibration.model_copy(update={"rates": tuple(rates)})
    cuts = (
        first.model_copy(update={"calibration": calibration}),
        second.model_copy(update={"calibration": None}),
        *rest,
    )
    manifest = artifact.manifest.model_copy(update={"cuts": cuts})
    files = {stored.file: artifact.read_file(stored) for stored in manifest.files}
    return write_artifact(target, manifest, files)


def rates_of(artifact: Artifact) -> tuple[Rate, ...]:
    calibration = artifact.manifest.cuts[0].calibration
    assert calibration is not None
    return calibration.rates


# Sender


@pytest.mark.parametrize(
    ("quality", "floor"),
    [(None, 99.0), (99, 99.0), (99.5, 99.9), (96, 99.0), (95, 95.0), (1, 95.0)],
)
def test_the_rate_is_the_cheapest_that_promises_the_agreement(
    codecs: Codecs, quality: float | None, floor: float
):
    codec = codecs.encoder("step-ans", 1, quality)
    assert isinstance(codec, StepAnsCodec)
    assert codec.parameter == PARAMETERS[floor]


def test_the_order_of_the_rates_does_not_matter(artifact: Artifact, tmp_path: Path):
    turned = with_rates(artifact, tmp_path, rates_of(artifact)[::-1])
    assert Codecs(turned).encoder("step-ans", 1, 96).parameter == PARAMETERS[99.0]


def test_an_agreement_that_no_rate_promises_names_those_there_are(codecs: Codecs):
    with pytest.raises(UsageError, match=r"no rate for 99\.95 % agreement .*: 99\.9, 99, 95$"):
        codecs.encoder("step-ans", 1, 99.95)


def test_a_cut_without_calibration_names_the_command(artifact: Artifact, tmp_path: Path):
    half = with_rates(artifact, tmp_path, rates_of(artifact))
    name = half.manifest.cuts[1].name
    with pytest.raises(UsageError, match=f"at {name}; run: splitserve calibrate {tmp_path}"):
        Codecs(half).encoder("step-ans", 2)


def test_step_ans_works_at_cuts_only(artifact: Artifact, codecs: Codecs):
    for position in (0, len(artifact.manifest.cuts) + 1):
        with pytest.raises(UsageError, match=r"no tables at (in|out)put; it works at cuts only"):
            codecs.encoder("step-ans", position)


@pytest.mark.parametrize("name", [name for name in CODECS if name != "step-ans"])
def test_the_other_codecs_need_no_tables(codecs: Codecs, name: str):
    assert isinstance(codecs.encoder(name, 0), CODECS[name])
    assert isinstance(codecs.decoder(CODECS[name].number, 0, 0), CODECS[name])


def test_an_unknown_name_is_a_wrong_call(codecs: Codecs):
    with pytest.raises(UsageError, match="no codec 'gzip'; there are: raw"):
        codecs.encoder("gzip", 1)


def test_a_calibration_that_reached_no_floor_names_the_ways_out(artifact: Artifact, tmp_path: Path):
    bare = Codecs(with_rates(artifact, tmp_path, []))
    for quality in (None, 1, 99):
        with pytest.raises(UsageError) as refusal:
            bare.encoder("step-ans", 1, quality)
        said = str(refusal.value)
        assert artifact.manifest.cuts[0].name in said
        assert f"splitserve calibrate {tmp_path} --images DIR --floors" in said
        assert "--codec affine-u8" in said
    assert bare.decoder(5, 1, 500).name == "step-ans"


# Receiver


@pytest.mark.parametrize("parameter", [0, 476, 1023])
def test_the_frame_names_the_step(codecs: Codecs, parameter: int):
    codec = codecs.decoder(5, 1, parameter)
    assert isinstance(codec, StepAnsCodec)
    assert codec.parameter == parameter


@pytest.mark.parametrize("parameter", [-1, 1024, 1 << 31, (1 << 32) - 1])
def test_a_step_that_there_is_not_is_refused(codecs: Codecs, parameter: int):
    with pytest.raises(CodecError, match=f"step code {parameter} is not 0 to 1023"):
        codecs.decoder(5, 1, parameter)


def test_only_a_few_rates_are_kept(codecs: Codecs):
    """A peer names the rate of every frame, and each keeps a table for every coefficient."""
    first = codecs.decoder(5, 1, 0)
    assert codecs.decoder(5, 1, 0) is first
    gc.disable()  # what makes room is freed at once
    tracemalloc.start()
    try:
        for parameter in range(CACHED_CODECS, 1024, 8):
            codec = codecs.decoder(5, 1, parameter)
            assert isinstance(codec, StepAnsCodec)
            codec.quantise(np.zeros((1, 8, 128, 128), np.float32))
        now, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert now < 20 * 8 * 8 * 128 * 128
    assert codecs.decoder(5, 1, 0) is not first


@pytest.mark.parametrize("number", [0, 6, 7, 255])
def test_an_unknown_number_is_refused(codecs: Codecs, number: int):
    with pytest.raises(CodecError, match=f"unknown codec number {number}"):
        codecs.decoder(number, 1, 0)


@pytest.mark.parametrize("name", [name for name in CODECS if name != "step-ans"])
def test_a_parameter_is_for_step_ans_alone(codecs: Codecs, name: str):
    with pytest.raises(CodecError, match="takes no parameter, not 7"):
        codecs.decoder(CODECS[name].number, 0, 7)


@pytest.mark.parametrize("position", [0, 99, -1])
def test_a_position_without_tables_is_refused(codecs: Codecs, position: int):
    with pytest.raises(CodecError, match=f"step-ans has no tables at position {position}"):
        codecs.decoder(5, position, 500)


def test_a_cut_that_was_not_calibrated_is_refused(artifact: Artifact, tmp_path: Path):
    half = with_rates(artifact, tmp_path, rates_of(artifact))
    with pytest.raises(CodecError, match="no tables at position 2"):
        Codecs(half).decoder(5, 2, 500)


def test_what_one_side_encodes_the_other_decodes_at_every_cut(artifact: Artifact, codecs: Codecs):
    other = Codecs(artifact)
    for position, cut in enumerate(artifact.manifest.cuts, 1):
        sender = codecs.encoder("step-ans", position)
        receiver = other.decoder(5, position, sender.parameter)
        for index, spec in enumerate(cut.egress):
            shape = spec.concrete()
            tensor = np.random.default_rng(0).standard_normal(shape).astype(spec.dtype)
            payload = memoryview(sender.encode(tensor, index))
            got = receiver.decode(payload, shape, spec.dtype, index)
            np.testing.assert_array_equal(got, sender.decode(payload, shape, spec.dtype, index))


# Files


def test_tables_that_were_changed_are_refused(artifact: Artifact, tmp_path: Path):
    copied = shutil.copytree(artifact.root, tmp_path / "copy")
    calibration = artifact.manifest.cuts[0].calibration
    assert calibration is not None
    path = copied / calibration.tables.file
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(IntegrityError, match="differs from the sha256"):
        Codecs(load_artifact(copied))


def test_tables_of_another_cut_are_refused(artifact: Artifact, tmp_path: Path):
    """Their hash is right and they are whole, but their channels are not the tensor's."""
    first, *rest = artifact.manifest.cuts
    last = next(cut for cut in rest if cut.egress[0].shape[1] != first.egress[0].shape[1])
    swapped = first.model_copy(update={"calibration": last.calibration})
    manifest = artifact.manifest.model_copy(update={"cuts": (swapped, *rest)})
    files = {stored.file: artifact.read_file(stored) for stored in manifest.files}
    with pytest.raises(CodecError, match="the channels are not the tensor's"):
        Codecs(write_artifact(tmp_path, manifest, files))


def test_an_artifact_without_calibration_has_the_other_codecs(tiny_artifact: Path):
    codecs = Codecs(load_artifact(tiny_artifact))
    assert codecs.encoder("raw", 1).name == "raw"
    with pytest.raises(UsageError, match="run: splitserve calibrate"):
        codecs.encoder("step-ans", 1)
