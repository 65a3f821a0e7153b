"""Throw bytes at both ends: the frame decoder, the cloud's service, the agent's reading of replies.

`make fuzz ARGS='--seconds 600'`. Every frame goes to every end. Allowed are our own errors at the
decoder and at the agent, and replies or refusals other than INTERNAL at the service. Exit 1 with
the bytes of the frame on anything else, on a frame that takes longer than a second, and on growth
of more than 20 MB after a warm-up.
"""

import argparse
import asyncio
import gc
import json
import logging
import random
import resource
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import xxhash
import zstandard
from calibrated import PARAMETERS, calibrate_tiny
from graphs import write_tiny

from cloud_service.scheduler import Scheduler
from cloud_service.service import Service
from cloud_service.tail import Tail
from edge_agent.ask import read_outputs
from edge_agent.head import Head
from splitserve.artifact import Artifact
from splitserve.codec import (
    CODECS,
    Codec,
    Codecs,
    RawCodec,
    References,
    StepAnsCodec,
    Symbols,
    TopCodec,
    build_codec,
)
from splitserve.errors import CodecError, ContractError, WireError
from splitserve.runtime import Chain, RuntimeOptions, open_chain
from splitserve.split import choose_cuts, load_graph, recipe_of, split_model
from splitserve.tensors import Array
from splitserve.wire import (
    HEADER_BYTES,
    Frame,
    Limits,
    Refusal,
    RefusalCode,
    Reply,
    Request,
    Section,
    decode_frame,
    encode_frame,
)

GROWTH_LIMIT_BYTES = 20_000_000
FRAME_LIMIT_S = 1.0
WARM_UP = 500
LENGTH_AT, CHECKSUM_AT = 52, 56
MAX_BATCH = 64


@dataclass(frozen=True, slots=True)
class Failure:
    """What must not happen, and the bytes that made it happen."""

    end: str
    reason: str
    frame_hex: str


@dataclass(frozen=True, slots=True)
class Result:
    """What a run saw; `growth_bytes` is resident memory, now or at its peak, over the warm-up."""

    seed: int
    frames: int
    seconds: float
    outcomes: dict[str, int]
    growth_bytes: int
    slowest_s: float
    slowest_frame_hex: str
    failure: Failure | None

    @property
    def is_good(self) -> bool:
        return self.failure is None and self.growth_bytes <= GROWTH_LIMIT_BYTES


# Frames


@dataclass(frozen=True, slots=True)
class Corpus:
    """Valid frames: what the mutations start from; `known` is what some requests build on."""

    known: tuple[Symbols, ...]
    requests: tuple[Request, ...]
    replies: tuple[Reply, ...]
    refusals: tuple[Refusal, ...]

    def pick(self, rng: random.Random) -> Frame:
        return rng.choice(rng.choice((self.requests, self.requests, self.replies, self.refusals)))


def make_corpus(artifact: Artifact, chain: Chain) -> Corpus:
    """Collect requests at every cut with every codec, and the replies to them."""
    tail = Tail(artifact, chain, max_batch=MAX_BATCH)
    spec = artifact.manifest.inputs[0]
    codecs_of, requests, known = Codecs(artifact), [], []
    tables = [p for p in range(1, len(chain)) if is_coded(codecs_of, p)]
    for batch in (1, 3):
        shape = [size if isinstance(size, int) else batch for size in spec.shape]
        image = {spec.name: np.random.default_rng(0).normal(size=shape).astype(spec.dtype)}
        for position in range(len(chain)):
            features = chain.run(image, 0, position)
            tensors = [features[s.name] for s in artifact.manifest.egress(position)]
            codecs = (build_codec("raw"), RawCodec(exact=True), build_codec("affine-u8"))
            requests += [request_of(artifact, position, codec, tensors) for codec in codecs]
            calibrated = (codecs_of.encoder("step-ans", position, q) for q in PARAMETERS)
            for codec in calibrated if position in tables else ():
                requests.append(request_of(artifact, position, codec, tensors))
                request, reference = built_request(artifact, position, codec, tensors)
                requests.append(request)
                known.append(reference)
    height, width = artifact.manifest.preprocess.crop
    pixels = np.random.default_rng(0).integers(0, 255, (1, height, width, 3), np.uint8)
    requests += [request_of(artifact, 0, build_codec(n), [pixels]) for n in ("jpeg", "webp")]
    replies = [tail.answer(request, references=remembering(known)) for request in requests]
    requests += [replace(request, wants_top=True) for request in requests[:3]]
    best = Section((1, 10), bytes((2,)) + struct.pack("<fIfIf", -1.0, 3, 2.0, 9, 1.0))
    replies += [replace(replies[0], codec=TopCodec.number, sections=(best,))]
    affine = build_codec("affine-u8")
    for request, reply in zip(requests[:6], replies[:6], strict=True):
        logits = np.frombuffer(reply.sections[0].payload, "<f4", offset=1)
        shape = reply.sections[0].shape
        payload = affine.encode(logits.reshape(shape))
        replies.append(replace(reply, codec=affine.number, sections=(Section(shape, payload),)))
        assert reply.request_id == request.request_id
    refusals = [Refusal(code, f"{code.name}, naïvely", bytes(16), 0.5) for code in RefusalCode]
    return Corpus(tuple(known), tuple(requests), tuple(replies), tuple(refusals))


def request_of(artifact: Artifact, position: int, codec: Codec, tensors: list[Array]) -> Request:
    sections = tuple(Section(tensor.shape, codec.encode(tensor)) for tensor in tensors)
    number, parameter = codec.number, codec.parameter
    return Request(bytes(range(16)), artifact.id, position, number, sections, None, parameter)


def is_coded(codecs: Codecs, position: int) -> bool:
    codec = codecs.encoder("step-ans", position)
    assert isinstance(codec, StepAnsCodec)
    return codec.is_coded(0)


def built_request(
    artifact: Artifact, position: int, codec: Codec, tensors: list[Array]
) -> tuple[Request, Symbols]:
    """A request whose one payload builds on features that are nearly the same."""
    assert isinstance(codec, StepAnsCodec)
    request = request_of(artifact, position, codec, tensors)
    symbols = codec.quantise(tensors[0])
    moved = symbols.values.copy()
    moved.flat[::17] += 1
    reference = replace(symbols, values=moved)
    section = Section(tensors[0].shape, codec.pack(symbols, reference))
    return replace(request, sections=(section, *request.sections[1:])), reference


def remembering(known: Sequence[Symbols]) -> References:
    references = References()
    for symbols in known:
        references.keep(symbols)
    return references


def repair(data: bytes | bytearray) -> bytes:
    """Make length and checksum right again, so that what lies behind them is reached."""
    fixed = bytearray(data) + bytes(max(0, HEADER_BYTES - len(data)))
    fixed[LENGTH_AT:CHECKSUM_AT] = struct.pack("<I", len(fixed) - HEADER_BYTES)
    digest = xxhash.xxh3_64(bytes(fixed[:CHECKSUM_AT]) + bytes(fixed[HEADER_BYTES:]))
    fixed[CHECKSUM_AT:HEADER_BYTES] = struct.pack("<Q", digest.intdigest())
    return bytes(fixed)


# Mutations: each makes one frame from the corpus and a generator


def noise(corpus: Corpus, rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice((0, 3, 63, 64, 65, 200, 4000)))


def noise_behind_a_header(corpus: Corpus, rng: random.Random) -> bytes:
    start = struct.pack("<4sBBH", b"SPSV", 1, rng.randint(0, 4), 0)
    return repair(start + rng.randbytes(rng.randint(56, 400)))


def truncated(corpus: Corpus, rng: random.Random) -> bytes:
    data = encode_frame(corpus.pick(rng))
    return data[: rng.randrange(len(data))]


def truncated_and_repaired(corpus: Corpus, rng: random.Random) -> bytes:
    return repair(truncated(corpus, rng))


def extended(corpus: Corpus, rng: random.Random) -> bytes:
    data = encode_frame(corpus.pick(rng)) + rng.randbytes(rng.randint(1, 40))
    return repair(data) if rng.random() < 0.7 else data


def flipped(corpus: Corpus, rng: random.Random) -> bytes:
    data = bytearray(encode_frame(corpus.pick(rng)))
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def flipped_and_repaired(corpus: Corpus, rng: random.Random) -> bytes:
    return repair(flipped(corpus, rng))


def fields_replaced(corpus: Corpus, rng: random.Random) -> bytes:
    """Telling values where numbers stand: in the header, and where the first tensor begins."""
    data = bytearray(encode_frame(corpus.pick(rng)))
    for _ in range(rng.randint(1, 3)):
        width = rng.choice((1, 2, 4))
        value = rng.choice((0, 1, 2, 3, 9, 64, 65, 255, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF))
        at = rng.choice((rng.randrange(4, 56), rng.randrange(64, 112)))
        data[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
    return repair(data)


def spliced(corpus: Corpus, rng: random.Random) -> bytes:
    first, second = encode_frame(corpus.pick(rng)), encode_frame(corpus.pick(rng))
    start = rng.randrange(HEADER_BYTES, len(first) + 1)
    return repair(first[:start] + second[rng.randrange(len(second)) :])


def payload_damaged(corpus: Corpus, rng: random.Random) -> bytes:
    """Bits flipped or bytes lost inside one payload; everything around it is right."""
    frame = rng.choice(rng.choice((corpus.requests, corpus.replies)))
    section = rng.choice(frame.sections)
    payload = bytearray(section.payload)
    for _ in range(rng.randint(0, 6)):
        payload[min(rng.randrange(len(payload)), rng.choice((20, 100_000)))] = rng.randrange(256)
    if rng.random() < 0.3:
        payload = payload[: rng.randrange(len(payload) + 1)]
    return encode_frame(replace(frame, sections=(Section(section.shape, bytes(payload)),)))


def claims_made_up(corpus: Corpus, rng: random.Random) -> bytes:
    """Any cut, codec, number of tensors, shapes and payloads."""
    frame = rng.choice(rng.choice((corpus.requests, corpus.replies)))
    sizes = (0, 1, 2, 3, 10, 16, 32, MAX_BATCH, MAX_BATCH + 1, 1 << 16, 0xFFFF_FFFF)
    section = frame.sections[0]
    sections = []
    for _ in range(rng.choice((0, 1, 1, 1, 2, 65))):
        shape = tuple(rng.choice(sizes) for _ in range(rng.randint(0, 8)))
        if rng.random() < 0.5:
            shape = (rng.choice(sizes[:-2]), *section.shape[1:])
        payload = rng.choice((section.payload, b"", rng.randbytes(rng.randint(1, 60))))
        sections.append(Section(shape, payload))
    codec = rng.choice((frame.codec, 1, 2, 3, 4, 5, rng.randrange(256)))
    cut = rng.choice((frame.cut, rng.randint(0, 4), rng.randrange(0x10000)))
    return encode_frame(replace(frame, cut=cut, codec=codec, sections=tuple(sections)))


def zstd_made_up(corpus: Corpus, rng: random.Random) -> bytes:
    """affine-u8 payloads with hostile side information, of a right, near or huge size."""
    frame = rng.choice(rng.choice((corpus.requests, corpus.replies)))
    shape = frame.sections[0].shape
    channels = shape[1] if len(shape) > 2 else 1
    size = 4 * channels + int(np.prod(shape)) + rng.choice((0, 0, 0, 0, -1, 1, 1 << 22))
    side = struct.pack("<H", rng.choice((0, 1, 0x3F80, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FC0)))
    content = (side * 2 * channels + bytes((rng.randrange(256),)) * size)[:size]
    payload = bytes((rng.choice((0, 1, 1, 1)),)) + zstandard.compress(content, 1)
    section = Section(shape, payload)
    return encode_frame(replace(frame, codec=CODECS["affine-u8"].number, sections=(section,)))


def step_ans_made_up(corpus: Corpus, rng: random.Random) -> bytes:
    """Any kind, motion level, tag, layer size, rate and batch around a good or made-up stream."""
    number = CODECS["step-ans"].number
    frame = rng.choice([request for request in corpus.requests if request.codec == number])
    section = frame.sections[0]
    tag = rng.choice((rng.randbytes(8), *(struct.pack("<Q", one.tag) for one in corpus.known)))
    size = rng.choice((0, 4, rng.randrange(200), 0x7FFF_FFFF, 0xFFFF_FFFF))
    sizes = rng.choice((b"", struct.pack("<I", size)))
    stream = rng.choice(
        (bytes(section.payload[2:]), bytes(section.payload[10:]), rng.randbytes(40))
    )
    head = bytes((rng.randrange(5), rng.choice((0, 0, 1, 1, 2, 3, 255))))
    payload = head + rng.choice((b"", tag)) + sizes + stream
    shape = (rng.choice((1, 3, MAX_BATCH, rng.randint(1, MAX_BATCH))), *section.shape[1:])
    parameter = rng.choice((frame.parameter, rng.randrange(1024), rng.randrange(1 << 32)))
    sections = (Section(rng.choice((section.shape, shape)), payload), *frame.sections[1:])
    return encode_frame(replace(frame, sections=sections, parameter=parameter))


Mutation = Callable[[Corpus, random.Random], bytes]
MUTATIONS: tuple[Mutation, ...] = (
    noise,
    noise_behind_a_header,
    truncated,
    truncated_and_repaired,
    extended,
    flipped,
    flipped_and_repaired,
    fields_replaced,
    spliced,
    payload_damaged,
    claims_made_up,
    zstd_made_up,
    step_ans_made_up,
)


# Ends


class Ends:
    """Decoder, service and agent over one small artifact; `throw` returns what each made of it."""

    def __init__(self, artifact: Artifact, chain: Chain, known: Sequence[Symbols]) -> None:
        self._limits = Limits()
        self._known = known
        self._references = References()
        self._scheduler = Scheduler(workers=1, waiting=8)
        tail = Tail(artifact, chain, max_batch=MAX_BATCH)
        self._service = Service(tail, self._scheduler, self._limits)
        self._head = Head(artifact, chain)

    async def throw(self, end: str, data: bytes) -> str:
        return await {"decoder": self._decode, "cloud": self._answer, "edge": self._read}[end](data)

    async def _decode(self, data: bytes) -> str:
        try:
            return type(decode_frame(data, self._limits)).__name__
        except WireError as error:
            return type(error).__name__

    async def _answer(self, data: bytes) -> str:
        for symbols in self._known:  # other frames push them out
            self._references.keep(symbols)
        answer = await self._service.answer(data, self._references)
        encode_frame(answer)
        return answer.code.name if isinstance(answer, Refusal) else "Reply"

    async def _read(self, data: bytes) -> str:
        try:
            frame = decode_frame(data, self._limits)
            if isinstance(frame, Reply):
                read_outputs(self._head, frame)
            return type(frame).__name__
        except (WireError, CodecError, ContractError) as error:
            return type(error).__name__

    async def close(self) -> None:
        self._scheduler.close()


ENDS = ("decoder", "cloud", "edge")


class LastWarning(logging.Handler):
    """Keeps the service's last complaint, with its traceback, and nothing before it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = f"{self.format(record)} {getattr(record, 'why', '')}"


@contextmanager
def kept_quiet() -> Iterator[LastWarning]:
    """Give the service's log to one handler; a million refusals would drown every other output."""
    logger, kept = logging.getLogger("cloud_service.service"), LastWarning()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(kept)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield kept
    finally:
        logger.removeHandler(kept)
        logger.setLevel(level)
        logger.propagate = propagate


class Run:
    """Counts and clocks of one run."""

    def __init__(self, ends: Ends, log: LastWarning) -> None:
        self._ends = ends
        self._log = log
        self.outcomes: Counter[str] = Counter()
        self.slowest: tuple[float, bytes] = (0.0, b"")

    async def throw(self, data: bytes) -> Failure | None:
        """Show one frame to every end; say what was wrong with the way it was taken."""
        for end in ENDS:
            started = time.perf_counter()
            try:
                outcome = await self._ends.throw(end, data)
            except Exception:  # noqa: BLE001 - finding these is the point
                return Failure(end, traceback.format_exc(), data.hex())
            took_s = time.perf_counter() - started
            self.outcomes[f"{end} {outcome}"] += 1
            self.slowest = max(self.slowest, (took_s, data))
            if outcome == "INTERNAL":
                return Failure(end, self._log.text, data.hex())
            if took_s > FRAME_LIMIT_S:
                return Failure(end, f"took {took_s:.3f} s", data.hex())
        return None


def fuzz(count: int | None = None, seconds: float | None = None, seed: int = 0) -> Result:
    """Throw frames until there were `count`, `seconds` have passed, or one was taken badly."""
    with tempfile.TemporaryDirectory() as folder:
        model = write_tiny(Path(folder) / "tiny.onnx")
        graph = load_graph(model)
        cuts = choose_cuts(graph)
        recipe = recipe_of(graph.model, "tiny")
        plain = split_model(graph, cuts, recipe, model, Path(folder) / "artifact")
        artifact = calibrate_tiny(plain.root, Path(folder) / "calibrated")
        chain = open_chain(artifact, RuntimeOptions(threads=1))
        with kept_quiet() as log:
            return asyncio.run(_fuzz(artifact, chain, log, (count, seconds, seed)))


async def _fuzz(
    artifact: Artifact,
    chain: Chain,
    log: LastWarning,
    bounds: tuple[int | None, float | None, int],
) -> Result:
    count, seconds, seed = bounds
    corpus, rng = make_corpus(artifact, chain), random.Random(seed)
    ends = Ends(artifact, chain, corpus.known)
    failure = await _warm_up(Run(ends, log), corpus)
    run, before, frames = Run(ends, log), _resident_bytes(), 0
    started = time.perf_counter()
    try:
        while failure is None and (count is None or frames < count):
            if seconds is not None and time.perf_counter() - started > seconds:
                break
            failure = await run.throw(rng.choice(MUTATIONS)(corpus, rng))
            frames += 1
    finally:
        await ends.close()
    after = _resident_bytes()
    return Result(
        seed=seed,
        frames=frames,
        seconds=round(time.perf_counter() - started, 3),
        outcomes=dict(sorted(run.outcomes.items())),
        growth_bytes=max(now - then for now, then in zip(after, before, strict=True)),
        slowest_s=round(run.slowest[0], 6),
        slowest_frame_hex=run.slowest[1].hex(),
        failure=failure,
    )


async def _warm_up(run: Run, corpus: Corpus) -> Failure | None:
    """Everything once as it should be, the largest batch too, then a few hundred mutations."""
    whole = [request for request in corpus.requests if request.sections[0].shape[0] == 3]
    largest = [
        replace(request, sections=(Section((MAX_BATCH, *s.shape[1:]), payload),), codec=1)
        for request in whole
        for s in request.sections
        for payload in [b"\0" + bytes(4 * MAX_BATCH * int(np.prod(s.shape[1:])))]
    ]
    frames: list[bytes] = [
        encode_frame(frame)
        for frame in (*corpus.requests, *corpus.replies, *corpus.refusals, *largest)
    ]
    rng = random.Random("warm-up")
    frames += [rng.choice(MUTATIONS)(corpus, rng) for _ in range(WARM_UP)]
    for data in frames:
        if failure := await run.throw(data):
            return failure
    return None


def _resident_bytes() -> tuple[int, int]:
    """Resident memory now, and the most there ever was."""
    gc.collect()
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return psutil.Process().memory_info().rss, peak


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, help="stop after this long (default 60)")
    parser.add_argument("--count", type=int, help="stop after this many frames")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mutations (default 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    if options.seconds is None and options.count is None:
        options.seconds = 60.0
    result = fuzz(options.count, options.seconds, options.seed)
    text = json.dumps(asdict(result)) if options.json else report(result)
    sys.stdout.write(f"{text}\n")
    return 0 if result.is_good else 1


def report(result: Result) -> str:
    """The result as text; the bytes of a frame only where they are needed."""
    width = max(map(len, result.outcomes), default=0)
    rate = result.frames / max(result.seconds, 1e-9)
    slowest_bytes = len(result.slowest_frame_hex) // 2
    lines = [
        f"{result.frames} frames in {result.seconds} s ({rate:.0f} a second), seed {result.seed}",
        *(f"  {name:{width}} {number:>9}" for name, number in result.outcomes.items()),
        f"memory growth {result.growth_bytes / 1e6:.1f} MB, limit {GROWTH_LIMIT_BYTES / 1e6:.0f}",
        f"slowest frame {result.slowest_s * 1e3:.1f} ms, {slowest_bytes} bytes",
    ]
    if result.failure is not None:
        lines += [f"FAILED at {result.failure.end}: {result.failure.reason}"]
        lines += [f"frame: {result.failure.frame_hex}"]
    lines += ["good" if result.is_good else "not good"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
