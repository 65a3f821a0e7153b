"""Plans, the head's work, and what the device refuses."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from edge_agent.head import Head, Plan
from splitserve.artifact import INPUT, OUTPUT, Artifact
from splitserve.codec import Codec, RawCodec
from splitserve.errors import PictureError, UsageError
from splitserve.picture import decode_picture, normalise
from splitserve.runtime import Chain
from splitserve.tensors import Array


def plan_with(head: Head, cut: str, codec: Codec) -> Plan:
    """A plan whose codec is made by hand."""
    return dataclasses.replace(head.plan(cut, "raw"), codec=codec)


def whole(artifact: Artifact, chain: Chain, picture: bytes) -> Array:
    """Run the unsplit model on a picture, by another path than the head's."""
    preprocess = artifact.manifest.preprocess
    assert preprocess is not None
    values = normalise(decode_picture(picture, preprocess), preprocess)
    outputs = chain.run({artifact.manifest.inputs[0].name: values}, 0, len(chain))
    return outputs[artifact.manifest.outputs[0].name]


def test_a_plan_knows_its_position(artifact: Artifact, head: Head) -> None:
    for position, name in enumerate(artifact.manifest.positions):
        plan = head.plan(name, "raw")
        assert (plan.cut, plan.position) == (name, position)
        assert head.is_local(plan) == (name == OUTPUT)


def test_a_cut_that_is_not_there_is_refused_with_those_that_are(
    artifact: Artifact, head: Head
) -> None:
    with pytest.raises(UsageError, match="no cut 'elsewhere'") as refusal:
        head.plan("elsewhere", "raw")
    assert all(name in str(refusal.value) for name in artifact.manifest.positions)


@pytest.mark.parametrize("codec", ["jpeg", "webp"])
def test_a_picture_codec_fits_the_input_only(artifact: Artifact, head: Head, codec: str) -> None:
    assert head.plan(INPUT, codec).position == 0
    for name in artifact.manifest.positions[1:]:
        with pytest.raises(UsageError, match="it needs --cut input"):
            head.plan(name, codec)


def test_head_and_finish_equal_the_whole_model_at_every_plan(
    artifact: Artifact, chain: Chain, head: Head, picture: bytes
) -> None:
    wanted = whole(artifact, chain, picture)
    for name in artifact.manifest.positions:
        for codec in ("raw", "affine-u8", *(("jpeg", "webp") if name == INPUT else ())):
            plan = head.plan(name, codec)
            work = head.run(picture, plan)
            got = head.finish(work)[artifact.manifest.outputs[0].name]
            # The edge finishes from its own features, whatever the codec would have lost.
            np.testing.assert_array_equal(got, wanted)


def test_sections_carry_the_egress_tensors_in_the_manifests_order(
    artifact: Artifact, head: Head, picture: bytes
) -> None:
    for position, name in enumerate(artifact.manifest.positions[:-1]):
        work = head.run(picture, plan_with(head, name, RawCodec(exact=True)))
        specs = artifact.manifest.egress(position)
        assert len(work.sections) == len(specs)
        for spec, section in zip(specs, work.sections, strict=True):
            payload = memoryview(section.payload)
            values = RawCodec().decode(payload, section.shape, spec.dtype)
            np.testing.assert_array_equal(values, work.tensors[spec.name])


def test_a_local_plan_sends_nothing(head: Head, picture: bytes) -> None:
    work = head.run(picture, head.plan(OUTPUT, "raw"))
    assert work.sections == ()
    assert "encode" not in work.stages_s


def test_every_stage_has_its_time(artifact: Artifact, head: Head, picture: bytes) -> None:
    work = head.run(picture, head.plan(artifact.manifest.cuts[0].name, "raw"))
    head.finish(work)
    assert list(work.stages_s) == ["picture", "normalise", "head", "encode", "edge_tail"]
    assert all(value > 0 for value in work.stages_s.values())


def test_slowdown_stretches_everything_computed_here(
    artifact: Artifact, chain: Chain, picture: bytes
) -> None:
    quick, slow = Head(artifact, chain), Head(artifact, chain, slowdown=20)
    cut = artifact.manifest.cuts[0].name

    def fastest_s(head: Head) -> dict[str, float]:
        plan: Plan = head.plan(cut, "raw")
        works = [head.run(picture, plan) for _ in range(5)]
        return {stage: min(work.stages_s[stage] for work in works) for stage in works[0].stages_s}

    quick_s, slow_s = fastest_s(quick), fastest_s(slow)
    # 20 is asked for; a busy machine may have stretched the fast run by itself.
    assert all(slow_s[stage] > 4 * quick_s[stage] for stage in quick_s)


def test_warm_up_says_how_long_finishing_takes(artifact: Artifact, head: Head) -> None:
    finish_s = head.warm_up([head.plan(INPUT, "raw")])
    assert len(finish_s) == len(artifact.manifest.positions)
    assert finish_s == sorted(finish_s, reverse=True)
    assert finish_s[-1] == 0
    assert 0 < finish_s[0] < 5


@pytest.mark.parametrize(
    "content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(50)], ids=["empty", "text", "torn"]
)
def test_an_unreadable_picture_is_refused(head: Head, content: bytes) -> None:
    with pytest.raises(PictureError):
        head.run(content, head.plan(OUTPUT, "raw"))


def test_a_truncated_picture_is_refused(head: Head, picture: bytes) -> None:
    with pytest.raises(PictureError):
        head.run(picture[: len(picture) // 2], head.plan(OUTPUT, "raw"))


def test_features_that_the_codec_cannot_carry_stay_here_with_the_reason(
    artifact: Artifact, picture: bytes
) -> None:
    class Infinite:
        def __len__(self) -> int:
            return len(artifact.manifest.segments)

        def run(self, tensors: object, start: int, stop: int) -> dict[str, Array]:
            return {
                spec.name: np.full([1, *spec.shape[1:]], np.inf, np.float32)
                for spec in artifact.manifest.egress(stop)
            }

    head = Head(artifact, Infinite())
    cut = artifact.manifest.cuts[0].name
    work = head.run(picture, head.plan(cut, "affine-u8"))
    assert work.sections == ()
    assert "use raw" in work.problem
    assert cut in work.tensors


def test_an_artifact_without_preprocessing_is_refused_with_the_way_out(
    artifact: Artifact, chain: Chain
) -> None:
    manifest = artifact.manifest.model_copy(update={"preprocess": None})
    bare = dataclasses.replace(artifact, root=Path("somewhere"), manifest=manifest)
    with pytest.raises(UsageError, match="--recipe FILE") as refusal:
        Head(bare, chain)
    assert "somewhere" in str(refusal.value)


def test_an_artifact_with_two_inputs_is_refused(artifact: Artifact, chain: Chain) -> None:
    manifest = artifact.manifest.model_copy(update={"inputs": artifact.manifest.inputs * 2})
    with pytest.raises(UsageError, match="feeds pictures"):
        Head(dataclasses.replace(artifact, manifest=manifest), chain)
