"""Exact bytes of wire version 1 and of every codec payload, as docs/wire.md shows them.

A `.hex` file holds the bytes, 32 to a line. Files are added to, never edited: bytes that were sent
once are read for ever.
"""

import re
from pathlib import Path

import numpy as np
import pytest

from splitserve.codec import AffineCodec, JpegCodec, RawCodec, WebpCodec
from splitserve.tensors import Array
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
}
RAW: dict[str, tuple[RawCodec, Array]] = {
    "codec-raw-half": (RawCodec(), HALVES),
    "codec-raw-exact": (RawCodec(), EXACT),
    "codec-raw-exact-int32": (RawCodec(), INTEGERS),
}
AFFINE: dict[str, Array] = {
    "codec-affine-u8-float": FEATURES,
    "codec-affine-u8-int32": INTEGERS,
}
PICTURES = {"codec-jpeg": JpegCodec(), "codec-webp": WebpCodec()}


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


def test_every_golden_file_is_read_by_a_test():
    names = {*FRAMES, *RAW, *AFFINE, *(f"{name}.decoded" for name in AFFINE), *PICTURES}
    assert {path.stem for path in FOLDER.glob("*.hex")} == names


def test_the_vectors_in_the_format_document_are_the_golden_bytes():
    text = (FOLDER.parents[1] / "docs" / "wire.md").read_text(encoding="utf-8")
    shown = re.findall(r"\(`([\w-]+)\.hex`\).*?```text\n(.*?)```", text, re.DOTALL)
    assert len(shown) == 4
    for name, block in shown:
        columns = [re.split(r" {3,}", line)[0] for line in block.splitlines()]
        assert bytes.fromhex("".join(columns)).hex() == read_golden(name).hex(), name
