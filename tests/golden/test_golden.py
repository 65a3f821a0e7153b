"""Exact bytes of wire version 1 and of every codec payload, as docs/wire.md shows them.

A `.hex` file holds the bytes, 32 to a line. Files are added to, never edited: bytes that were sent
once are read for ever.
"""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from splitserve.codec import (
    AffineCodec,
    JpegCodec,
    RawCodec,
    References,
    StepAnsCodec,
    Symbols,
    TopCodec,
    Transform,
    WebpCodec,
    coarse_part,
    read_tables,
)
from splitserve.codec.rans import LIBRARY_LOADED
from splitserve.tensors import Array, TensorSpec
from splitserve.wire import (
    Frame,
    Limits,
    Refusal,
    RefusalCode,
    Reply,
    Request,
    Section,
    Timings,
    decode_frame,
    encode_frame,
)

FOLDER = Path(__file__).parent
REQUEST_ID = bytes(range(0x10))
ARTIFACT_ID = bytes(range(0xA0, 0xB0))

HALVES = np.array([[[0.0, 1.0, -1.0], [0.5, 1 / 3, 65504.0]]], np.float32)
EXACT = np.array([1e30, -0.0, np.pi], np.float32)
INTEGERS = np.array([[1, -2, 3], [2**31 - 1, -(2**31), 0]], np.int32)
FEATURES = np.stack(
    [np.linspace(-1.0, 3.0, 8), np.full(8, 0.25)],
).astype(np.float32)[None]
"""(1, 2, 8): one channel with a range, one constant."""

FRAMES: dict[str, Frame] = {
    "wire-v1-request": Request(
        request_id=REQUEST_ID,
        artifact_id=ARTIFACT_ID,
        cut=2,
        codec=1,
        sections=(Section((1, 2, 3), RawCodec().encode(HALVES)),),
        deadline_s=0.25,
    ),
    "wire-v1-request-two-tensors": Request(
        request_id=REQUEST_ID,
        artifact_id=ARTIFACT_ID,
        cut=0x0102,
        codec=1,
        sections=(Section((), b"\0" + bytes(4)), Section((0, 7), b"\0")),
        deadline_s=None,
        parameter=0x01020304,
    ),
    "wire-v1-request-top": Request(
        request_id=REQUEST_ID,
        artifact_id=ARTIFACT_ID,
        cut=1,
        codec=1,
        sections=(Section((3,), RawCodec(exact=True).encode(EXACT)),),
        wants_top=True,
    ),
    "wire-v1-reply": Reply(
        request_id=REQUEST_ID,
        artifact_id=ARTIFACT_ID,
        cut=2,
        codec=1,
        sections=(Section((1, 3), RawCodec(exact=True).encode(EXACT)),),
        timings=Timings(queue_s=0.000123, decode_s=0.00045, compute_s=0.0078, load=0.5, batch=1),
    ),
    "wire-v1-refusal": Refusal(
        code=RefusalCode.OVERLOADED,
        message="257 requests are pending, the limit is reached — wait",
        request_id=REQUEST_ID,
        retry_after_s=1.0,
    ),
    "wire-v1-refusal-reference": Refusal(
        code=RefusalCode.REFERENCE,
        message="the payload builds on a frame that is not known here",
        request_id=REQUEST_ID,
    ),
}
RAW: dict[str, tuple[RawCodec, Array]] = {
    "codec-raw-half": (RawCodec(), HALVES),
    "codec-raw-exact": (RawCodec(), EXACT),
    "codec-raw-exact-int32": (RawCodec(), INTEGERS),
}
SCORES = np.round(np.cos(np.arange(24) * 2.0) * 64)[None].astype(np.float32)
"""(1, 24): logits; the smallest multiples of 1 that a softmax tells apart."""
AFFINE: dict[str, Array] = {
    "codec-affine-u8-float": FEATURES,
    "codec-affine-u8-int32": INTEGERS,
}
PICTURES = {"codec-jpeg": JpegCodec(), "codec-webp": WebpCodec()}
STEP_ANS_SPEC = TensorSpec(name="features", dtype="float32", shape=("batch", 16, 4, 6))
STEP_ANS_SHAPE = (1, 16, 4, 6)
STEP_ANS_STEP = 512
"""The code of the step 1: with it, and tables of powers of two, floating point is exact."""
STEP_ANS = {
    "codec-step-ans-whole": ("whole", False),
    "codec-step-ans-layered": ("whole", True),
    "codec-step-ans-after": ("after", False),
    "codec-step-ans-after-layered": ("after", True),
}
"""The integers of each payload, and whether it has layers; `after` builds on `whole`."""
STEP_ANS_FILES = {
    *STEP_ANS,
    "codec-step-ans-coarse",
    "codec-step-ans-coarse.halves",
    "codec-step-ans-whole.integers",
    "codec-step-ans-after.integers",
}
LOOPS = [
    pytest.param(
        True,
        id="compiled",
        marks=pytest.mark.skipif(LIBRARY_LOADED is None, reason="no compiled loops here"),
    ),
    pytest.param(False, id="pure"),
]


def read_golden(name: str) -> bytes:
    return bytes.fromhex((FOLDER / f"{name}.hex").read_text(encoding="ascii"))


def picture() -> Array:
    """(1, 16, 24, 3): red grows downwards, green to the right, blue stays."""
    rows, columns = np.mgrid[0:16, 0:24]
    return np.stack([rows * 16, columns * 10, np.full((16, 24), 128)], axis=2).astype(np.uint8)[
        None
    ]


@pytest.mark.parametrize("name", FRAMES)
def test_encode_frame_makes_the_golden_bytes(name: str):
    assert encode_frame(FRAMES[name]).hex() == read_golden(name).hex()


@pytest.mark.parametrize("name", FRAMES)
def test_decode_frame_reads_the_golden_bytes(name: str):
    assert decode_frame(read_golden(name), Limits()) == FRAMES[name]


@pytest.mark.parametrize("name", RAW)
def test_raw_makes_the_golden_bytes(name: str):
    codec, tensor = RAW[name]
    assert codec.encode(tensor).hex() == read_golden(name).hex()


@pytest.mark.parametrize("name", RAW)
def test_raw_reads_the_golden_bytes(name: str):
    codec, tensor = RAW[name]
    got = codec.decode(memoryview(read_golden(name)), tensor.shape, str(tensor.dtype))
    want = tensor.astype(np.float16).astype(np.float32) if name == "codec-raw-half" else tensor
    assert got.dtype == tensor.dtype
    assert got.tobytes() == want.tobytes()


def test_top_makes_and_reads_the_golden_bytes():
    golden = read_golden("codec-top")
    assert TopCodec().encode(SCORES).hex() == golden.hex()
    got = TopCodec().decode(memoryview(golden), SCORES.shape, "float32")
    assert got.astype("<f4").tobytes().hex() == read_golden("codec-top.decoded").hex()


@pytest.mark.parametrize("name", AFFINE)
def test_affine_u8_reads_the_golden_bytes_as_exactly_the_recorded_values(name: str):
    tensor = AFFINE[name]
    got = AffineCodec().decode(memoryview(read_golden(name)), tensor.shape, str(tensor.dtype))
    little = got.astype(got.dtype.newbyteorder("<"))
    assert little.tobytes().hex() == read_golden(f"{name}.decoded").hex()


@pytest.mark.parametrize("name", AFFINE)
def test_affine_u8_makes_bytes_that_mean_the_recorded_values(name: str):
    """The bytes themselves may change with zstd's version."""
    tensor, codec = AFFINE[name], AffineCodec()
    got = codec.decode(memoryview(codec.encode(tensor)), tensor.shape, str(tensor.dtype))
    little = got.astype(got.dtype.newbyteorder("<"))
    assert little.tobytes().hex() == read_golden(f"{name}.decoded").hex()


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_codec_reads_the_golden_file(name: str):
    """Decoders of one format differ by a level or two; chroma is subsampled, hence the rest."""
    want = picture()
    got = PICTURES[name].decode(memoryview(read_golden(name)), want.shape, "uint8")
    assert got.shape == want.shape
    assert got.dtype == np.uint8
    difference = np.abs(got.astype(int) - want)
    assert difference.mean() < 4
    assert difference.max() < 24


def step_ans(*, layered: bool = False, native: bool = True) -> StepAnsCodec:
    content = (FOLDER / "codec-step-ans-v1.npz").read_bytes()
    tables = read_tables(content, [STEP_ANS_SPEC])
    return StepAnsCodec(tables, STEP_ANS_STEP, layered=layered, native=native)


def integers(name: str) -> Symbols:
    """The recorded integers: (1, 16 channels, 6 blocks, 4 frequencies), little-endian int16."""
    values = np.frombuffer(read_golden(f"codec-step-ans-{name}.integers"), "<i2")
    return Symbols(0, STEP_ANS_STEP, values.reshape(1, 16, 6, 4).astype(np.int32))


@pytest.mark.parametrize("native", LOOPS)
@pytest.mark.parametrize("name", STEP_ANS)
def test_step_ans_makes_the_golden_bytes_of_the_recorded_integers(name: str, native: bool):
    which, layered = STEP_ANS[name]
    reference = integers("whole") if which == "after" else None
    got = step_ans(layered=layered, native=native).pack(integers(which), reference)
    assert got.hex() == read_golden(name).hex()


@pytest.mark.parametrize("native", LOOPS)
@pytest.mark.parametrize("name", STEP_ANS)
def test_step_ans_reads_the_golden_bytes_as_exactly_the_recorded_integers(name: str, native: bool):
    references, want = References(), integers(STEP_ANS[name][0])
    references.keep(integers("whole"))
    codec = step_ans(native=native)
    got = codec.decode(memoryview(read_golden(name)), STEP_ANS_SHAPE, "float32", 0, references)
    assert references.find(want.tag).values.tolist() == want.values.tolist()
    assert codec.quantise(got).values.tolist() == want.values.tolist()


@pytest.mark.parametrize("native", LOOPS)
def test_step_ans_reads_a_golden_coarse_layer_as_exactly_the_recorded_halves(native: bool):
    """Twice the coefficients, little-endian int32: a coarse value means the middle of its cell."""
    payload = read_golden("codec-step-ans-coarse")
    want = np.frombuffer(read_golden("codec-step-ans-coarse.halves"), "<i4").reshape(1, 16, 6, 4)
    content = (FOLDER / "codec-step-ans-v1.npz").read_bytes()
    got = step_ans(native=native).decode(memoryview(payload), STEP_ANS_SHAPE, "float32")
    (tables,) = read_tables(content, [STEP_ANS_SPEC])
    assert tables is not None
    assert (Transform(tables).forward(got) * 2).tolist() == want.tolist()
    assert coarse_part(read_golden("codec-step-ans-layered")).hex() == payload.hex()


def test_every_golden_file_is_read_by_a_test():
    names = {*FRAMES, *RAW, *AFFINE, *(f"{name}.decoded" for name in AFFINE), *PICTURES}
    names |= {"codec-top", "codec-top.decoded"}
    assert {path.stem for path in FOLDER.glob("*.hex")} == names | STEP_ANS_FILES
    assert [path.name for path in FOLDER.glob("*.npz")] == ["codec-step-ans-v1.npz"]


def test_the_vectors_in_the_format_document_are_the_golden_bytes():
    text = (FOLDER.parents[1] / "docs" / "wire.md").read_text(encoding="utf-8")
    shown = re.findall(r"\(`([\w-]+)\.hex`\).*?```text\n(.*?)```", text, re.DOTALL)
    assert len(shown) == 4
    for name, block in shown:
        columns = [re.split(r" {3,}", line)[0] for line in block.splitlines()]
        assert bytes.fromhex("".join(columns)).hex() == read_golden(name).hex(), name


def test_the_proof_for_other_processors_holds_on_this_one():
    command = [sys.executable, str(FOLDER.parent / "arm64" / "prove.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "pure loops: 4 golden payloads" in done.stdout
