"""Every tail finishes what its head began, and refuses what does not fit."""

import dataclasses
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import zstandard

from cloud_service.tail import Tail
from splitserve.artifact import Artifact
from splitserve.codec import AffineCodec, JpegCodec, RawCodec, TopCodec, build_codec
from splitserve.errors import (
    CodecError,
    ContractError,
    SplitServeError,
    UnknownArtifactError,
)
from splitserve.picture import normalise
from splitserve.runtime import Chain
from splitserve.tensors import Array
from splitserve.wire import Reply, Request, Section

MakeRequest = Callable[..., Request]


def output(reply: Reply, artifact: Artifact) -> Array:
    spec = artifact.manifest.outputs[0]
    section = reply.sections[0]
    return RawCodec().decode(memoryview(section.payload), section.shape, spec.dtype)


def with_section(request: Request, shape: tuple[int, ...], payload: bytes) -> Request:
    return dataclasses.replace(request, sections=(Section(shape, payload),))


def test_each_position_answers_what_the_whole_model_answers(
    artifact: Artifact, chain: Chain, tail: Tail, image: dict[str, Array], make_request: MakeRequest
) -> None:
    whole = chain.run(image, 0, len(chain))[artifact.manifest.outputs[0].name]
    for position in range(len(chain)):
        reply = tail.answer(make_request(position, number=position), 0.25, 0.5)
        assert reply.request_id == position.to_bytes(16, "big")
        assert (reply.artifact_id, reply.cut) == (artifact.id, position)
        assert (reply.timings.queue_s, reply.timings.load) == (0.25, 0.5)
        assert reply.timings.compute_s > 0
        # The same segments on the same bytes, only started in the middle: equal to the last bit.
        np.testing.assert_array_equal(output(reply, artifact), whole)


def test_the_best_classes_alone_are_sent_where_they_are_asked_for(
    chain: Chain, tail: Tail, image: dict[str, Array], make_request: MakeRequest
) -> None:
    """Ten classes are too few to leave any out: the values are those of a plain reply."""
    plain = tail.answer(make_request(1))
    got = tail.answer(dataclasses.replace(make_request(1), wants_top=True))
    assert (plain.codec, got.codec) == (RawCodec.number, TopCodec.number)
    assert [s.payload for s in got.sections] == [s.payload for s in plain.sections]


def test_quantised_features_answer_nearly_the_same(
    artifact: Artifact, chain: Chain, tail: Tail, image: dict[str, Array], make_request: MakeRequest
) -> None:
    whole = chain.run(image, 0, len(chain))[artifact.manifest.outputs[0].name]
    for position in range(len(chain)):
        got = output(tail.answer(make_request(position, codec="affine-u8")), artifact)
        # One byte a value: an error of 1/510 of each channel's range, before the tail.
        assert np.abs(got - whole).max() <= 0.1 * np.abs(whole).max()


def test_a_batch_answers_each_of_its_inputs(
    artifact: Artifact, tail: Tail, make_request: MakeRequest
) -> None:
    single = output(tail.answer(make_request(1)), artifact)
    batch = output(tail.answer(make_request(1, batch=3)), artifact)
    assert batch.shape == (3, *single.shape[1:])
    np.testing.assert_allclose(batch, np.repeat(single, 3, axis=0), rtol=1e-4, atol=1e-5)


def picture_request(artifact: Artifact, request: Request, pixels: Array) -> Request:
    codec = JpegCodec(95)
    section = Section(pixels.shape, codec.encode(pixels))
    return dataclasses.replace(request, cut=0, codec=codec.number, sections=(section,))


def test_a_picture_is_decoded_and_normalised_here(
    artifact: Artifact, chain: Chain, tail: Tail, make_request: MakeRequest
) -> None:
    preprocess = artifact.manifest.preprocess
    assert preprocess is not None
    pixels = np.full((1, *preprocess.crop, 3), (200, 40, 90), np.uint8)
    request = picture_request(artifact, make_request(0), pixels)
    decoded = JpegCodec().decode(memoryview(request.sections[0].payload), pixels.shape, "uint8")
    values = {artifact.manifest.inputs[0].name: normalise(decoded[0], preprocess)}
    whole = chain.run(values, 0, len(chain))[artifact.manifest.outputs[0].name]
    np.testing.assert_array_equal(output(tail.answer(request), artifact), whole)


def test_warm_up_runs_every_tail(tail: Tail) -> None:
    tail.warm_up()


def test_another_artifact_is_refused_with_both_ids(
    artifact: Artifact, tail: Tail, make_request: MakeRequest
) -> None:
    request = dataclasses.replace(make_request(), artifact_id=b"\xab" * 16)
    with pytest.raises(UnknownArtifactError, match="ab" * 16) as refusal:
        tail.check(request)
    assert artifact.id.hex() in str(refusal.value)


@pytest.mark.parametrize("beyond", [0, 1, 1000])
def test_a_cut_without_a_tail_is_refused(
    chain: Chain, tail: Tail, make_request: MakeRequest, beyond: int
) -> None:
    request = dataclasses.replace(make_request(), cut=len(chain) + beyond)
    with pytest.raises(ContractError, match="no tail after position"):
        tail.check(request)


def test_shapes_that_contradict_the_manifest_are_refused(
    tail: Tail, make_request: MakeRequest
) -> None:
    request = make_request(1)
    shape, payload = request.sections[0].shape, bytes(request.sections[0].payload)
    wrong = [
        (0, *shape[1:]),
        shape[1:],
        (*shape, 1),
        (*shape[:-1], shape[-1] + 1),
        (),
        (shape[0], shape[1] * 2, *shape[2:]),
    ]
    for claimed in wrong:
        with pytest.raises(ContractError, match="is expected"):
            tail.check(with_section(request, claimed, payload))


def test_too_few_and_too_many_tensors_are_refused(tail: Tail, make_request: MakeRequest) -> None:
    request = make_request(1)
    for sections in ((), request.sections * 2):
        with pytest.raises(ContractError, match="tensors where 1 are expected"):
            tail.check(dataclasses.replace(request, sections=sections))


def test_a_batch_over_the_limit_is_refused(
    artifact: Artifact, chain: Chain, make_request: MakeRequest
) -> None:
    tail = Tail(artifact, chain, max_batch=2)
    tail.check(make_request(1, batch=2))
    with pytest.raises(ContractError, match="a batch of 3 is over the limit of 2"):
        tail.check(make_request(1, batch=3))


def test_only_a_free_first_dimension_counts_as_a_batch(
    artifact: Artifact, chain: Chain, make_request: MakeRequest
) -> None:
    request = make_request(1)
    cut = artifact.manifest.cuts[0]
    fixed = cut.egress[0].model_copy(update={"shape": (100, 4)})
    cuts = (cut.model_copy(update={"egress": (fixed,)}), *artifact.manifest.cuts[1:])
    manifest = artifact.manifest.model_copy(update={"cuts": cuts})
    tail = Tail(dataclasses.replace(artifact, manifest=manifest), chain, max_batch=64)
    tail.check(with_section(request, (100, 4), b""))


def test_an_unknown_codec_is_refused(tail: Tail, make_request: MakeRequest) -> None:
    with pytest.raises(CodecError, match="unknown codec number 250"):
        tail.check(dataclasses.replace(make_request(), codec=250))


@pytest.mark.parametrize("codec", ["jpeg", "webp"])
def test_a_picture_codec_behind_the_input_is_refused(
    tail: Tail, make_request: MakeRequest, codec: str
) -> None:
    request = dataclasses.replace(make_request(1), codec=build_codec(codec).number)
    with pytest.raises(ContractError, match="at the input only"):
        tail.check(request)


def test_a_picture_for_a_model_without_preprocessing_is_refused(
    artifact: Artifact, chain: Chain, make_request: MakeRequest
) -> None:
    manifest = artifact.manifest.model_copy(update={"preprocess": None})
    tail = Tail(dataclasses.replace(artifact, manifest=manifest), chain)
    with pytest.raises(ContractError, match="at the input only"):
        tail.check(dataclasses.replace(make_request(0), codec=JpegCodec.number))


def test_a_picture_of_another_size_than_it_claims_is_refused(
    artifact: Artifact, tail: Tail, make_request: MakeRequest
) -> None:
    preprocess = artifact.manifest.preprocess
    assert preprocess is not None
    height, width = preprocess.crop
    small = picture_request(
        artifact, make_request(0), np.zeros((1, height // 2, width, 3), np.uint8)
    )
    with pytest.raises(ContractError):
        tail.check(small)
    lying = with_section(small, (1, height, width, 3), bytes(small.sections[0].payload))
    with pytest.raises(CodecError, match="is expected"):
        tail.answer(lying)


def test_payloads_that_lie_about_type_or_size_are_refused(
    tail: Tail, make_request: MakeRequest
) -> None:
    raw, affine = make_request(1), make_request(1, codec="affine-u8")
    shape, content = raw.sections[0].shape, bytes(raw.sections[0].payload)
    doubled = np.frombuffer(content[1:], "<f4").astype("<f8").tobytes()
    stored = bytes((0,)) + zstandard.compress(content[1:])
    lies = [
        (raw, b""),
        (raw, content[:-1]),
        (raw, content + b"\0"),
        (raw, bytes((0,)) + doubled),
        (raw, bytes((9,)) + content[1:]),
        (raw, bytes(affine.sections[0].payload)),
        (affine, b""),
        (affine, content),
        (affine, stored),
        (affine, bytes(affine.sections[0].payload)[:-3]),
    ]
    for request, payload in lies:
        with pytest.raises(CodecError):
            tail.answer(with_section(request, shape, payload))


def test_integers_where_floats_are_due_are_refused(tail: Tail, make_request: MakeRequest) -> None:
    request = make_request(1, codec="affine-u8")
    shape = request.sections[0].shape
    payload = AffineCodec().encode(np.ones(shape, np.int32))
    with pytest.raises(CodecError, match="mode"):
        tail.answer(with_section(request, shape, payload))


@pytest.mark.parametrize("codec", ["raw", "affine-u8"])
def test_nothing_is_allocated_for_a_tensor_that_is_only_claimed(
    artifact: Artifact, chain: Chain, make_request: MakeRequest, codec: str
) -> None:
    tail = Tail(artifact, chain, max_batch=1_000_000)
    request = make_request(1, codec=codec)
    giant = (1_000_000, *request.sections[0].shape[1:])
    small_frame = bytes((1,)) + zstandard.compress(b"\0" * 100)
    for payload in (bytes(request.sections[0].payload), small_frame):
        tracemalloc.start()
        with pytest.raises(CodecError):
            tail.answer(with_section(request, giant, payload))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1_000_000


def test_an_answer_that_is_no_tensor_is_our_own_error(
    artifact: Artifact, make_request: MakeRequest
) -> None:
    class Sequences:
        def __len__(self) -> int:
            return len(artifact.manifest.segments)

        def run(self, tensors: object, start: int, stop: int) -> dict[str, list[int]]:
            return {spec.name: [1, 2] for spec in artifact.manifest.outputs}

    with pytest.raises(SplitServeError, match="other than dense tensors"):
        Tail(artifact, Sequences()).answer(make_request(1))
