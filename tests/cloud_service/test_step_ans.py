"""Calibrated cuts: tails decode them, streams remember, and hostile payloads are refused."""

import asyncio
import dataclasses
import hashlib
import json
import random
import shutil
import struct
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from calibrated import PARAMETERS, moving_pixels

from cloud_service.app import build_app
from cloud_service.scheduler import Scheduler
from cloud_service.service import Service
from cloud_service.tail import Tail
from splitserve.artifact import Artifact, load_artifact
from splitserve.cli import main
from splitserve.codec import (
    STREAM_ELEMENTS_MAX,
    Codecs,
    RawCodec,
    References,
    StepAnsCodec,
    Symbols,
)
from splitserve.codec.symbols import REFERENCE_ELEMENTS_MAX
from splitserve.errors import (
    CodecError,
    FrameTooLargeError,
    IntegrityError,
    ReferenceMissingError,
    SplitServeError,
)
from splitserve.picture import normalise
from splitserve.runtime import Chain, RuntimeOptions, open_chain
from splitserve.tensors import Array
from splitserve.wire import (
    Limits,
    Refusal,
    RefusalCode,
    Reply,
    Request,
    Section,
    decode_frame,
    encode_frame,
)

QUALITY = 99.0
PARAMETER = PARAMETERS[QUALITY]
CUT = 1
WHOLE, LAYERED, COARSE = 1, 2, 3
MOST_S = 2.0


class Frames:
    """Requests of a moving scene at a cut, whole or built on the one before."""

    def __init__(self, artifact: Artifact, chain: Chain) -> None:
        self.artifact = artifact
        self._chain = chain
        self._codecs = Codecs(artifact)

    def features(self, count: int, position: int = CUT) -> list[list[Array]]:
        manifest = self.artifact.manifest
        assert manifest.preprocess is not None
        frames = []
        for pixels in moving_pixels(self.artifact, 900, count):
            values = {manifest.inputs[0].name: normalise(pixels, manifest.preprocess)}
            made = self._chain.run(values, 0, position)
            frames.append([made[spec.name] for spec in manifest.egress(position)])
        return frames

    def codec(self, position: int = CUT, quality: float = QUALITY) -> StepAnsCodec:
        codec = self._codecs.encoder("step-ans", position, quality)
        assert isinstance(codec, StepAnsCodec)
        return codec

    def request(self, tensors: list[Array], position: int = CUT, **changes: object) -> Request:
        codec = self.codec(position)
        payloads = [codec.encode(tensor, index) for index, tensor in enumerate(tensors)]
        shapes = [tensor.shape for tensor in tensors]
        made = Request(
            request_id=bytes(15) + b"\1",
            artifact_id=self.artifact.id,
            cut=position,
            codec=codec.number,
            sections=tuple(map(Section, shapes, payloads)),
            parameter=codec.parameter,
        )
        return dataclasses.replace(made, **changes)

    def pair(self) -> tuple[Request, Request]:
        """A whole frame, and one that builds on it."""
        first, second = (tensors[0] for tensors in self.features(2))
        codec = self.codec()
        known, next_one = codec.quantise(first), codec.quantise(second)
        payload = codec.pack(next_one, known)
        assert payload[1] > 0
        whole = self.request([first])
        return whole, with_payload(whole, payload)


def with_payload(request: Request, payload: bytes, shape: tuple[int, ...] = ()) -> Request:
    section = Section(shape or request.sections[0].shape, payload)
    return dataclasses.replace(request, sections=(section,))


def output(reply: Reply) -> bytes:
    return b"".join(bytes(section.payload) for section in reply.sections)


@pytest.fixture(scope="session")
def calibrated(calibrated_artifact: Path) -> Artifact:
    return load_artifact(calibrated_artifact)


@pytest.fixture(scope="session")
def frames(calibrated: Artifact) -> Frames:
    return Frames(calibrated, open_chain(calibrated, RuntimeOptions(threads=1)))


@pytest.fixture(scope="session")
def tail_of(calibrated: Artifact, frames: Frames) -> Tail:
    return Tail(calibrated, frames._chain)


@pytest.fixture
def serving(tail_of: Tail) -> Iterator[Service]:
    scheduler = Scheduler(workers=2, waiting=8)
    yield Service(tail_of, scheduler, Limits(frame_bytes=1024 * 1024))
    scheduler.close()


def test_each_calibrated_cut_answers_from_what_the_codec_gives(
    calibrated: Artifact, frames: Frames, tail_of: Tail
) -> None:
    for position, cut in enumerate(calibrated.manifest.cuts, 1):
        (tensors,) = frames.features(1, position)
        request, codec = frames.request(tensors, position), frames.codec(position)
        decoded = {
            spec.name: codec.decode(memoryview(s.payload), s.shape, spec.dtype, index)
            for index, (spec, s) in enumerate(zip(cut.egress, request.sections, strict=True))
        }
        outputs = frames._chain.run(decoded, position, len(frames._chain))
        wanted = outputs[calibrated.manifest.outputs[0].name]
        section = tail_of.answer(request).sections[0]
        got = RawCodec().decode(memoryview(section.payload), section.shape, "float32")
        np.testing.assert_array_equal(got, wanted)


def test_a_cut_of_two_tensors_decodes_each_by_its_own_tables(calibrated_fork: Path) -> None:
    artifact = load_artifact(calibrated_fork)
    frames = Frames(artifact, open_chain(artifact, RuntimeOptions(threads=1)))
    tail = Tail(artifact, frames._chain)
    (tensors,) = frames.features(1)
    request = frames.request(tensors)
    assert isinstance(tail.answer(request), Reply)
    swapped = dataclasses.replace(request, sections=request.sections[::-1])
    with pytest.raises(CodecError):
        tail.answer(swapped)


def test_warm_up_decodes_every_rate(tail_of: Tail) -> None:
    tail_of.warm_up()


def test_a_stream_builds_on_what_it_has_decoded(frames: Frames, tail_of: Tail) -> None:
    whole, built = frames.pair()
    alone = tail_of.answer(frames.request(frames.features(2)[1]))
    references = References()
    tail_of.answer(whole, references=references)
    assert output(tail_of.answer(built, references=references)) == output(alone)


@pytest.mark.parametrize("references", [None, References()], ids=["http", "new stream"])
def test_what_was_never_decoded_here_cannot_be_built_on(
    frames: Frames, tail_of: Tail, references: References | None
) -> None:
    _, built = frames.pair()
    with pytest.raises(ReferenceMissingError):
        tail_of.answer(built, references=references)


async def test_a_missing_reference_has_its_own_refusal(frames: Frames, serving: Service) -> None:
    whole, built = frames.pair()
    first, second = References(), References()
    assert isinstance(await serving.answer(encode_frame(whole), first), Reply)
    assert isinstance(await serving.answer(encode_frame(built), first), Reply)
    for references in (None, second):
        refusal = await serving.answer(encode_frame(built), references)
        assert isinstance(refusal, Refusal)
        assert refusal.code is RefusalCode.REFERENCE
        assert refusal.request_id == built.request_id
    assert 'splitserve_refusals_total{reason="reference"} 2.0' in serving.metrics.text().decode()


@pytest.fixture
async def client(serving: Service) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=build_app(serving))
    async with httpx.AsyncClient(transport=transport, base_url="http://cloud") as made:
        yield made


async def test_http_remembers_nothing(client: httpx.AsyncClient, frames: Frames) -> None:
    whole, built = frames.pair()
    assert (await client.post("/v1/infer", content=encode_frame(whole))).status_code == 200
    response = await client.post("/v1/infer", content=encode_frame(built))
    assert response.status_code == 409
    refusal = decode_frame(response.content, Limits())
    assert isinstance(refusal, Refusal)
    assert refusal.code is RefusalCode.REFERENCE


def hostile(frames: Frames) -> dict[str, Request]:
    """Payloads that must be refused, each for its own reason."""
    whole, built = frames.pair()
    payload, moved = bytes(whole.sections[0].payload), bytes(built.sections[0].payload)
    body = payload[2:]
    shape = whole.sections[0].shape
    (elsewhere,) = frames.features(1, 2)
    other_cut = bytes(frames.request(elsewhere, 2).sections[0].payload)
    return {
        "empty": with_payload(whole, b""),
        "one byte": with_payload(whole, payload[:1]),
        "no stream": with_payload(whole, payload[:2]),
        "cut short": with_payload(whole, payload[:-2]),
        "odd": with_payload(whole, payload[:-1]),
        "longer": with_payload(whole, payload + b"\0\0"),
        "stored": with_payload(whole, b"\0" + payload[1:]),
        "unknown kind": with_payload(whole, b"\x09" + payload[1:]),
        "no layers": with_payload(whole, bytes((LAYERED,)) + payload[1:]),
        "layer too large": with_payload(whole, struct.pack("<BBI", LAYERED, 0, 2**32 - 1) + body),
        "layer too small": with_payload(whole, struct.pack("<BBI", LAYERED, 0, 0) + body),
        "coarse with more": with_payload(whole, struct.pack("<BBI", COARSE, 0, 4) + body),
        "coarse too large": with_payload(whole, struct.pack("<BBI", COARSE, 0, 2**31) + body),
        "unknown level": with_payload(built, moved[:1] + b"\xff" + moved[2:]),
        "no tag": with_payload(built, moved[:6]),
        "another cut's": with_payload(whole, other_cut),
        "another cut's tables": dataclasses.replace(whole, cut=2),
        "claimed batch": with_payload(whole, payload, (64, *shape[1:])),
        "rate out of range": dataclasses.replace(whole, parameter=1024),
        "rate far out of range": dataclasses.replace(whole, parameter=2**32 - 1),
        "no tables there": dataclasses.replace(whole, cut=0),
        "parameter of raw": dataclasses.replace(whole, codec=1),
    }


@pytest.mark.parametrize("how", [
    "empty", "one byte", "no stream", "cut short", "odd", "longer", "stored", "unknown kind",
    "no layers", "layer too large", "layer too small", "coarse with more", "coarse too large",
    "unknown level", "no tag", "another cut's", "another cut's tables", "claimed batch",
    "rate out of range", "rate far out of range", "no tables there", "parameter of raw",
])  # fmt: skip
async def test_hostile_payloads_are_refused_soon(
    frames: Frames, serving: Service, how: str
) -> None:
    references = References()
    assert isinstance(await serving.answer(encode_frame(frames.pair()[0]), references), Reply)
    started = time.perf_counter()
    refusal = await serving.answer(encode_frame(hostile(frames)[how]), references)
    assert time.perf_counter() - started < MOST_S
    assert isinstance(refusal, Refusal)
    assert refusal.code in (RefusalCode.CODEC, RefusalCode.CONTRACT)


def test_a_tag_that_is_not_quite_known_is_not_known(frames: Frames, tail_of: Tail) -> None:
    whole, built = frames.pair()
    references, payload = References(), bytearray(built.sections[0].payload)
    tail_of.answer(whole, references=references)
    for byte in range(2, 10):
        wrong = bytearray(payload)
        wrong[byte] ^= 1
        with pytest.raises(ReferenceMissingError):
            tail_of.answer(with_payload(built, bytes(wrong)), references=references)


def test_a_known_frame_of_another_rate_is_not_built_on(frames: Frames, tail_of: Tail) -> None:
    whole, built = frames.pair()
    references = References()
    tail_of.answer(whole, references=references)
    for parameter in (0, PARAMETER - 1, PARAMETER + 1, 1023):
        with pytest.raises(CodecError):
            tail_of.answer(dataclasses.replace(built, parameter=parameter), references=references)


@pytest.mark.parametrize("seed", range(4))
async def test_damaged_payloads_give_answers_or_refusals(
    frames: Frames, serving: Service, seed: int
) -> None:
    rng, references = random.Random(seed), References()
    whole, built = frames.pair()
    await serving.answer(encode_frame(whole), references)
    outcomes = set()
    for _ in range(150):
        request = rng.choice((whole, built))
        payload = bytearray(request.sections[0].payload)
        for _ in range(rng.randint(1, 4)):
            payload[min(rng.randrange(len(payload)), rng.choice((12, 9999)))] = rng.randrange(256)
        if rng.random() < 0.3:
            del payload[rng.randrange(len(payload)) :]
        damaged = dataclasses.replace(
            with_payload(request, bytes(payload)),
            parameter=rng.choice((PARAMETER, PARAMETER, rng.randrange(1024))),
        )
        answer = await asyncio.wait_for(serving.answer(encode_frame(damaged), references), MOST_S)
        outcomes.add(answer.code if isinstance(answer, Refusal) else None)
    assert RefusalCode.INTERNAL not in outcomes
    assert {RefusalCode.CODEC, RefusalCode.REFERENCE} <= outcomes


def test_a_claim_costs_no_more_than_the_tensor_it_claims(
    calibrated: Artifact, frames: Frames
) -> None:
    tail = Tail(calibrated, frames._chain, max_batch=64)
    whole = frames.request(frames.features(1)[0])
    giant = (64, *whole.sections[0].shape[1:])
    elements = int(np.prod(giant))
    tail.answer(whole)
    tracemalloc.start()
    with pytest.raises(CodecError):
        tail.answer(with_payload(whole, bytes(whole.sections[0].payload), giant))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * elements


def test_narrow_maps_are_refused_by_the_coefficients_that_they_are_padded_to(
    calibrated: Artifact, frames: Frames
) -> None:
    """A cut whose height and width are free: a peer may ask for rows of one pixel."""
    whole = frames.pair()[0]
    first, *rest = calibrated.manifest.cuts
    batch, channels, *_ = first.egress[0].shape
    free = first.egress[0].model_copy(update={"shape": (batch, channels, "height", "width")})
    cuts = (first.model_copy(update={"egress": (free,)}), *rest)
    manifest = calibrated.manifest.model_copy(update={"cuts": cuts})
    limit = 1 << 20
    tail = Tail(
        dataclasses.replace(calibrated, manifest=manifest), frames._chain, max_elements=limit
    )
    shape = (1, int(channels), limit // int(channels) // 2, 1)
    narrow = with_payload(whole, bytes((WHOLE, 0, 0, 0, 1, 0)), shape)
    tracemalloc.start()
    try:
        with pytest.raises(FrameTooLargeError, match=f"coefficients .* the limit is {limit}"):
            tail.answer(narrow)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000
    tail.check(with_payload(whole, b"", (1, int(channels), 64, 64)))


def test_a_stream_remembers_a_bounded_number_of_frames(frames: Frames, tail_of: Tail) -> None:
    references = References()
    (first,) = frames.features(1)
    codec = frames.codec()
    known = codec.quantise(first[0])
    tail_of.answer(frames.request(first), references=references)
    for value in range(STREAM_ELEMENTS_MAX // REFERENCE_ELEMENTS_MAX):
        large = np.full((1, 1, 1, REFERENCE_ELEMENTS_MAX), value, np.int32)
        references.keep(Symbols(0, PARAMETER, large))
    built = with_payload(frames.request(first), codec.pack(known, known))
    with pytest.raises(ReferenceMissingError):
        tail_of.answer(built, references=references)


def broken_copy(
    source: Path, target: Path, change: Callable[[bytes], bytes], *, honest: bool
) -> Path:
    """Copy an artifact with other tables, whose hash is right where the copy is honest."""
    shutil.copytree(source, target)
    manifest = json.loads((target / "manifest.json").read_text())
    stored = manifest["cuts"][0]["calibration"]["tables"]
    content = change((target / stored["file"]).read_bytes())
    (target / stored["file"]).write_bytes(content)
    if honest:
        stored |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (target / "manifest.json").write_text(json.dumps(manifest))
    return target


BREAKAGES: dict[str, Callable[[bytes], bytes]] = {
    "no archive": lambda content: b"no archive at all",
    "cut short": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"\0",
}


@pytest.mark.parametrize("how", BREAKAGES)
@pytest.mark.parametrize("honest", [True, False])
def test_broken_tables_are_refused_at_the_start(
    calibrated_artifact: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    how: str,
    honest: bool,
) -> None:
    folder = broken_copy(calibrated_artifact, tmp_path / "a", BREAKAGES[how], honest=honest)
    artifact = load_artifact(folder)
    chain = open_chain(artifact, RuntimeOptions(threads=1))
    with pytest.raises(CodecError if honest else IntegrityError):
        Tail(artifact, chain)
    assert main(["serve", "--artifact", str(folder), "--port", "0"]) == 1
    said = capsys.readouterr().err
    assert "tables" in said or "t1.npz" in said
    assert "Traceback" not in said


def test_tables_of_another_cut_are_refused_at_the_start(
    calibrated_artifact: Path, tmp_path: Path
) -> None:
    other = (calibrated_artifact / "t2.npz").read_bytes()
    folder = broken_copy(calibrated_artifact, tmp_path / "a", lambda _: other, honest=True)
    artifact = load_artifact(folder)
    with pytest.raises(SplitServeError, match="tables of"):
        Tail(artifact, open_chain(artifact, RuntimeOptions(threads=1)))
