"""Every codec from outside: what comes back, how far off it is, and what hostile payloads do."""

import io
import math
import random
import struct
import time
import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from splitserve.codec import (
    CODECS,
    AffineCodec,
    Codec,
    JpegCodec,
    RawCodec,
    WebpCodec,
    build_codec,
    codec_by_number,
)
from splitserve.errors import CodecError, UsageError
from splitserve.tensors import DTYPES, Array

RAW, EXACT, AFFINE = RawCodec(), RawCodec(exact=True), AffineCodec()
FEATURE_CODECS = [RAW, EXACT, AFFINE]
PICTURE_CODECS = [JpegCodec(), WebpCodec()]
FLOATS = [name for name, dtype in DTYPES.items() if dtype.kind == "f"]
INTEGERS = [name for name in DTYPES if name not in FLOATS]
MIB = 1 << 20

shapes = npst.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6)
filled_shapes = npst.array_shapes(min_dims=0, max_dims=5, min_side=1, max_side=6)


def arrays(dtypes: list[str], some_shapes: st.SearchStrategy[tuple[int, ...]] = shapes):
    """Tensors of any dtype named, with any bit pattern that the dtype has."""
    return st.sampled_from(dtypes).flatmap(lambda name: npst.arrays(DTYPES[name], some_shapes))


def finite(width: int, limit: float) -> st.SearchStrategy[Array]:
    values = st.floats(-limit, limit, width=width)
    return npst.arrays(DTYPES[f"float{width}"], filled_shapes, elements=values)


def travel(codec: Codec, tensor: Array) -> Array:
    return codec.decode(memoryview(codec.encode(tensor)), tensor.shape, tensor.dtype.name)


def assert_same_bits(got: Array, want: Array) -> None:
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    assert got.tobytes() == want.tobytes()


def side_information(tensor: Array) -> tuple[Array, Array]:
    """Minima and steps that a payload carries, read the way docs/wire.md says; float64."""
    content = zstandard.decompress(AFFINE.encode(tensor)[1:])
    channels = (len(content) - tensor.size) // 4
    halves = np.frombuffer(content, "<u2", 2 * channels).astype(np.uint32)
    return tuple((halves << 16).view(np.float32).astype(np.float64).reshape(2, channels))


def groups(tensor: Array) -> Array:
    """(channels, elements): the values that share a range, by the rule in docs/wire.md."""
    channels = tensor.shape[1] if tensor.ndim > 2 else 1
    if tensor.size < 8 * channels:
        channels = 1
    moved = tensor if channels == 1 else np.moveaxis(tensor, 1, 0)
    return moved.reshape(channels, -1).astype(np.float64)


def affine_payload(minimum: float, step: float, values: bytes) -> bytes:
    sides = np.array([minimum, step], "<f4").view("<u4") >> 16
    return b"\x01" + zstandard.compress(sides.astype("<u2").tobytes() + values)


def peak_bytes_while_refusing(
    codec: Codec, payload: bytes, shape: tuple[int, ...], dtype: str
) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(CodecError):
            codec.decode(memoryview(payload), shape, dtype)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def picture(height: int = 24, width: int = 32) -> Array:
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [rows * 255 // height, columns * 255 // width, np.full_like(rows, 90)]
    return np.stack(channels, axis=2).astype(np.uint8)[None]


# The table


def test_codec_numbers_are_those_of_the_format():
    assert {name: kind.number for name, kind in CODECS.items()} == {
        "raw": 1,
        "affine-u8": 2,
        "jpeg": 3,
        "webp": 4,
        "step-ans": 5,
    }
    assert all(kind.name == name for name, kind in CODECS.items())


@pytest.mark.parametrize("name", [name for name in CODECS if name != "step-ans"])
def test_a_codec_is_found_by_name_and_by_number(name: str):
    assert isinstance(build_codec(name), CODECS[name])
    assert isinstance(codec_by_number(CODECS[name].number), CODECS[name])


@pytest.mark.parametrize("quality", [None, 99])
def test_step_ans_is_not_made_without_an_artifact(quality: float | None):
    with pytest.raises(UsageError, match="step-ans needs the tables of a calibrated artifact"):
        build_codec("step-ans", quality)
    with pytest.raises(CodecError, match="unknown codec number 5"):
        codec_by_number(5)


@pytest.mark.parametrize("number", [0, 6, 255, -1])
def test_codec_by_number_refuses_an_unknown_number(number: int):
    with pytest.raises(CodecError, match=f"unknown codec number {number}"):
        codec_by_number(number)


def test_build_codec_names_the_codecs_it_knows():
    known = "raw, affine-u8, jpeg, webp, step-ans"
    with pytest.raises(UsageError, match=f"no codec 'zip'; there are: {known}"):
        build_codec("zip")


@pytest.mark.parametrize("name", ["raw", "affine-u8"])
def test_build_codec_refuses_a_quality_where_there_is_none(name: str):
    with pytest.raises(UsageError, match="--quality is for jpeg, webp and step-ans"):
        build_codec(name, 90)


@pytest.mark.parametrize("name", ["jpeg", "webp"])
@pytest.mark.parametrize("quality", [-1, 0, 0.5, 50.5, 101, math.nan, math.inf])
def test_build_codec_refuses_a_quality_that_is_none(name: str, quality: float):
    with pytest.raises(UsageError, match=f"{quality:g} is not a whole number from 1 to 100"):
        build_codec(name, quality)


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_build_codec_takes_a_whole_number_as_a_float(name: str):
    assert build_codec(name, 50.0).encode(picture()) == build_codec(name, 50).encode(picture())


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_a_higher_quality_costs_more_bytes(name: str):
    sizes = [len(build_codec(name, quality).encode(picture())) for quality in (1, 50, 100)]
    assert sizes == sorted(set(sizes))


# Round trips


@given(arrays(list(DTYPES)))
def test_raw_exact_returns_every_bit(tensor: Array):
    assert_same_bits(travel(EXACT, tensor), tensor)


@given(arrays(INTEGERS))
def test_integers_come_back_bit_for_bit_from_every_codec(tensor: Array):
    assert_same_bits(travel(RAW, tensor), tensor)
    assert_same_bits(travel(AFFINE, tensor), tensor)


@given(arrays(["float16", "float64"]))
def test_raw_halves_only_float32(tensor: Array):
    assert_same_bits(travel(RAW, tensor), tensor)


@given(npst.arrays(np.float32, shapes))
def test_raw_returns_float32_rounded_to_half_or_exactly(tensor: Array):
    """Any bit pattern: NaN of either kind, infinities, denormals, values too large for a half."""
    with np.errstate(over="ignore"):
        half = tensor.astype(np.float16)
    fits = np.array_equal(np.isfinite(half), np.isfinite(tensor))
    got = travel(RAW, tensor)
    np.testing.assert_array_equal(got, half.astype(np.float32) if fits else tensor)
    assert RAW.encode(tensor)[0] == (1 if fits else 0)


@pytest.mark.parametrize(("value", "mode"), [(65504, 1), (65519.99, 1), (65520, 0), (-1e30, 0)])
def test_raw_falls_back_to_exact_where_a_half_would_overflow(value: float, mode: int):
    tensor = np.array([1.5, value], np.float32)
    assert RAW.encode(tensor)[0] == mode
    got = travel(RAW, tensor)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, tensor, rtol=0 if mode == 0 else 2**-11)


def test_raw_carries_nan_infinities_and_negative_zero():
    tensor = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-8], np.float32)
    got = travel(RAW, tensor)
    np.testing.assert_array_equal(got, tensor.astype(np.float16).astype(np.float32))
    assert np.signbit(got[3])


def test_raw_reads_every_half_there_is():
    halves = np.arange(65536, dtype="<u2").view("<f2")
    got = RAW.decode(memoryview(b"\x01" + halves.tobytes()), (65536,), "float32")
    np.testing.assert_array_equal(got, halves.astype(np.float32))


@given(finite(32, 2.0**126))
def test_affine_u8_is_off_by_at_most_half_a_step(tensor: Array):
    """The step is at least a 255th of the way from the carried minimum to the maximum.

    Beyond half a step lie only float32's own roundings: of the level, and of the sum.
    """
    minimum, step = side_information(tensor)
    want, got = groups(tensor), groups(travel(AFFINE, tensor))
    low, high = want.min(axis=1), want.max(axis=1)
    tiny = 2.0**-133  # smallest bfloat16 above zero
    assert (minimum <= low).all()
    assert (minimum >= low - np.maximum(2.0**-7 * np.abs(low), tiny)).all()
    exact_step = (high - minimum) / 255
    assert (step >= exact_step * (1 - 2.0**-24) - 2.0**-149).all()
    assert (step <= exact_step * (1 + 2.0**-7) + tiny).all()
    slack = 1e-4 * step + 2.0**-22 * (np.abs(minimum) + 255 * step) + 2.0**-141
    assert (np.abs(got - want) <= (step / 2 + slack)[:, None]).all()


@given(finite(16, 65504))
def test_affine_u8_keeps_float16_finite_and_close(tensor: Array):
    _, step = side_information(tensor)
    got = travel(AFFINE, tensor)
    assert got.dtype == np.float16
    assert np.isfinite(got).all()
    want = groups(tensor)
    slack = 2.0**-10 * np.abs(want).max() + 2.0**-24
    assert (np.abs(groups(got) - want) <= step[:, None] * 0.501 + slack).all()


@given(finite(64, 2.0**126))
def test_affine_u8_takes_float64_through_float32(tensor: Array):
    narrow = travel(AFFINE, tensor.astype(np.float32))
    np.testing.assert_array_equal(travel(AFFINE, tensor), narrow.astype(np.float64))


@given(npst.arrays(np.float32, shapes))
def test_affine_u8_takes_any_float32_or_refuses_it(tensor: Array):
    try:
        got = travel(AFFINE, tensor)
    except CodecError:
        return
    assert np.isfinite(got).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", FLOATS)
def test_affine_u8_refuses_what_is_not_finite(value: float, dtype: str):
    tensor = np.ones((1, 2, 8), dtype)
    tensor[0, 1, 3] = value
    with pytest.raises(CodecError, match="use raw"):
        AFFINE.encode(tensor)


@pytest.mark.parametrize(
    "values", [[-3.4e38, 0], [0, 3.4e38], [-3.4e38, 3.4e38], [-3e38, 3e38], [3.4e38, 3.4e38]]
)
def test_affine_u8_refuses_or_keeps_values_near_the_end_of_float32(values: list[float]):
    tensor = np.array(values, np.float32)
    try:
        got = travel(AFFINE, tensor)
    except CodecError:
        return
    np.testing.assert_allclose(got, tensor, atol=7e38 / 255)


def test_affine_u8_refuses_float64_beyond_float32():
    with pytest.raises(CodecError, match="use raw"):
        AFFINE.encode(np.array([1e300, 0.0]))


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -0.25, 2.0**-133, 2.0**100])
def test_affine_u8_returns_a_constant_of_few_bits_exactly(value: float):
    tensor = np.full((2, 3, 4, 4), value, np.float32)
    np.testing.assert_array_equal(travel(AFFINE, tensor), tensor)


@pytest.mark.parametrize("value", [0.1, -1003.3, 1e-39, 3e37])
def test_affine_u8_returns_any_constant_to_a_part_in_60000(value: float):
    tensor = np.full((1, 3, 4, 4), value, np.float32)
    np.testing.assert_allclose(travel(AFFINE, tensor), tensor, rtol=2**-16, atol=2.0**-133)


def test_affine_u8_takes_negative_zero_for_zero_and_denormals_for_what_they_are_near():
    got = travel(AFFINE, np.array([-0.0, 0.0, 1e-45, -1e-45, 1e-40], np.float32))
    assert np.abs(got).max() <= 2.0**-132


def test_channels_do_not_disturb_each_other():
    tensor = np.random.default_rng(0).normal(size=(2, 3, 5, 7)).astype(np.float32)
    loud = tensor.copy()
    loud[:, 1] *= 1e6
    np.testing.assert_array_equal(
        travel(AFFINE, loud)[:, [0, 2]], travel(AFFINE, tensor)[:, [0, 2]]
    )


@pytest.mark.parametrize(
    ("shape", "channels"),
    [
        ((1, 3, 2, 4), 3),
        ((1, 3, 7), 1),
        ((2, 3, 4), 3),
        ((1, 3, 8), 3),
        ((64, 10), 1),
        ((64,), 1),
        ((), 1),
        ((1, 1, 1, 1), 1),
        ((1, 1000, 1, 1), 1),
        ((8, 1000, 1, 1), 1000),
    ],
)
def test_channels_have_ranges_of_their_own_from_eight_elements_up(
    shape: tuple[int, ...], channels: int
):
    tensor = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    assert len(side_information(tensor)[0]) == channels
    assert travel(AFFINE, tensor).shape == shape


def test_a_batch_shares_its_channels_ranges():
    one = np.random.default_rng(2).normal(size=(1, 4, 6, 6)).astype(np.float32)
    batch = np.concatenate([one, one[:, :, ::-1], one])
    np.testing.assert_array_equal(travel(AFFINE, batch)[2], travel(AFFINE, one)[0])


@pytest.mark.parametrize("shape", [(0,), (1, 0), (0, 3, 4, 4), (1, 3, 0, 4), (1, 0, 4, 4)])
@pytest.mark.parametrize("codec", FEATURE_CODECS, ids=["raw", "exact", "affine"])
def test_empty_tensors_travel_or_are_refused(codec: Codec, shape: tuple[int, ...]):
    assert_same_bits(travel(codec, np.zeros(shape, np.int32)), np.zeros(shape, np.int32))
    empty = np.zeros(shape, np.float32)
    if codec is AFFINE:
        with pytest.raises(CodecError, match="empty tensors; use raw"):
            codec.encode(empty)
        assert codec.decode(memoryview(affine_payload(0, 1, b"")), shape, "float32").shape == shape
    else:
        assert_same_bits(travel(codec, empty), empty)


LAYOUTS = {
    "every other": lambda wide: wide[:, ::2, :, ::3],
    "backwards": lambda wide: wide[::-1, :, ::-1],
    "transposed": lambda wide: wide.transpose(0, 2, 3, 1),
    "fortran": np.asfortranarray,
    "big-endian": lambda wide: wide.astype(wide.dtype.newbyteorder(">")),
    "read-only": lambda wide: np.broadcast_to(wide[:, :1], wide.shape),
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int16", "uint64", "bool"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("codec", FEATURE_CODECS, ids=["raw", "exact", "affine"])
def test_the_layout_in_memory_does_not_reach_the_wire(codec: Codec, layout: str, dtype: str):
    wide = np.random.default_rng(3).integers(0, 100, (2, 6, 8, 9)).astype(dtype)
    tensor = LAYOUTS[layout](wide)
    plain = np.ascontiguousarray(tensor, DTYPES[dtype])
    got = codec.decode(memoryview(codec.encode(tensor)), tensor.shape, dtype)
    assert_same_bits(got, travel(codec, plain))
    assert got.dtype.isnative
    if codec is EXACT:
        assert codec.encode(tensor) == codec.encode(plain)


@pytest.mark.parametrize("codec", FEATURE_CODECS, ids=["raw", "exact", "affine"])
@pytest.mark.parametrize("dtype", ["float32", "int8", "bool"])
def test_decoded_tensors_are_their_own_and_may_be_written_to(codec: Codec, dtype: str):
    tensor = np.ones((1, 2, 4, 4), dtype)
    payload = bytearray(codec.encode(tensor))
    got = codec.decode(memoryview(payload), tensor.shape, dtype)
    payload[1:] = bytes(len(payload) - 1)
    np.testing.assert_array_equal(got, tensor)
    assert got.flags.writeable
    assert got.flags.c_contiguous
    assert got.flags.aligned


# Refusals


@pytest.mark.parametrize("payload", [b"", b"\x02abcd", b"\xffabcd"])
@pytest.mark.parametrize("codec", [RAW, AFFINE], ids=["raw", "affine"])
def test_an_unknown_mode_is_refused(codec: Codec, payload: bytes):
    with pytest.raises(CodecError, match="with mode"):
        codec.decode(memoryview(payload), (1,), "float32")


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name != "float32"])
def test_raw_refuses_halves_for_anything_but_float32(dtype: str):
    with pytest.raises(CodecError, match=f"mode 1 for {dtype}"):
        RAW.decode(memoryview(b"\x01\0\0"), (1,), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_affine_u8_refuses_floats_as_integers_and_the_reverse(dtype: str):
    is_float = DTYPES[dtype].kind == "f"
    other = np.zeros(4, np.int32 if is_float else np.float32)
    with pytest.raises(CodecError, match=f"for {dtype}"):
        AFFINE.decode(memoryview(AFFINE.encode(other)), (4,), dtype)


@pytest.mark.parametrize("codec", FEATURE_CODECS, ids=["raw", "exact", "affine"])
@pytest.mark.parametrize("shape", [(1, 2, 3, 5), (1, 2, 3), (), (0,), (1 << 20, 1 << 20)])
def test_another_shape_than_was_encoded_is_refused(codec: Codec, shape: tuple[int, ...]):
    payload = codec.encode(np.ones((1, 2, 3, 4), np.float32))
    assert peak_bytes_while_refusing(codec, payload, shape, "float32") < 64_000


@pytest.mark.parametrize("tail", [b"\0", b"junk", bytes(1000)])
@pytest.mark.parametrize("shape", [(2, 3), (0, 3)])
@pytest.mark.parametrize("codec", FEATURE_CODECS, ids=["raw", "exact", "affine"])
def test_trailing_bytes_are_refused(codec: Codec, shape: tuple[int, ...], tail: bytes):
    payload = codec.encode(np.zeros(shape, np.int32)) + tail
    with pytest.raises(CodecError):
        codec.decode(memoryview(payload), shape, "int32")


@pytest.mark.parametrize("codec", [RAW, AFFINE], ids=["raw", "affine"])
def test_a_bool_is_zero_or_one(codec: Codec):
    content = b"\0\1\2"
    payload = b"\0" + (content if codec is RAW else zstandard.compress(content))
    with pytest.raises(CodecError, match="neither 0 nor 1"):
        codec.decode(memoryview(payload), (3,), "bool")


@pytest.mark.parametrize(
    ("minimum", "step"),
    [
        (math.nan, 1.0),
        (1.0, math.nan),
        (math.inf, 1.0),
        (-math.inf, 1.0),
        (0.0, math.inf),
        (-math.inf, math.inf),
        (0.0, 3e38),
        (3e38, 3e36),
        (0.0, -3e38),
    ],
)
@pytest.mark.parametrize("dtype", FLOATS)
def test_affine_u8_refuses_side_information_that_is_not_finite(
    minimum: float, step: float, dtype: str
):
    with pytest.raises(CodecError, match="not finite"):
        AFFINE.decode(memoryview(affine_payload(minimum, step, b"\0\xff")), (2,), dtype)


def test_affine_u8_reads_a_negative_step_as_arithmetic_says():
    got = AFFINE.decode(memoryview(affine_payload(1.0, -0.5, b"\0\x04")), (2,), "float32")
    np.testing.assert_array_equal(got, np.array([1, -1], np.float32))


@pytest.mark.parametrize("sign", [1, -1])
def test_affine_u8_saturates_float16(sign: int):
    payload = affine_payload(sign * 1e30, 0.0, b"\0")
    got = AFFINE.decode(memoryview(payload), (1,), "float16")
    assert got[0] == sign * 65504


def test_a_zstd_frame_that_states_a_huge_size_is_refused_before_allocation():
    bomb = b"\x01" + zstandard.compress(bytes(50 * MIB))
    assert len(bomb) < 10_000
    assert peak_bytes_while_refusing(AFFINE, bomb, (1, 2, 8), "float32") < 64_000
    assert peak_bytes_while_refusing(AFFINE, b"\0" + bomb[1:], (4,), "int32") < 64_000


def test_a_zstd_frame_that_states_the_largest_size_there_is_is_refused():
    header = struct.pack("<IBQ", 0xFD2FB528, 0xE0, (1 << 64) - 3)
    assert peak_bytes_while_refusing(AFFINE, b"\x01" + header, (8,), "float32") < 64_000


def test_a_zstd_frame_without_its_size_is_refused():
    compressor = zstandard.ZstdCompressor(write_content_size=False)
    payload = b"\x01" + compressor.compress(bytes(12))
    with pytest.raises(CodecError, match="where 12 are expected"):
        AFFINE.decode(memoryview(payload), (8,), "float32")


@pytest.mark.parametrize("real", [0, 11, 13, 100, 10 * MIB])
def test_a_zstd_frame_that_lies_about_its_size_is_refused(real: int):
    """The header's one-byte size says 12; the blocks say otherwise."""
    blocks = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(real))
    start = zstandard.frame_header_size(blocks)
    lie = struct.pack("<IBB", 0xFD2FB528, 0x20, 12) + blocks[start:]
    assert zstandard.get_frame_parameters(lie).content_size == 12
    assert peak_bytes_while_refusing(AFFINE, b"\x01" + lie, (8,), "float32") < 300_000


def test_a_zstd_frame_with_a_huge_window_costs_nothing():
    content = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(12))
    blocks = content[zstandard.frame_header_size(content) :]
    header = struct.pack("<IBBI", 0xFD2FB528, 0x80, 0xA8, 12)  # a window of 2 GiB, 12 bytes
    assert zstandard.get_frame_parameters(header + blocks).window_size == 1 << 31
    peak_bytes_while_refusing(AFFINE, b"\x01" + header + blocks[:-1], (8,), "float32")


@pytest.mark.parametrize("stated", [0, 12])
def test_a_skippable_zstd_frame_is_refused(stated: int):
    payload = b"\0" + struct.pack("<II", 0x184D2A50, stated) + bytes(stated)
    for shape in ((0,), (12,)):
        with pytest.raises(CodecError):
            AFFINE.decode(memoryview(payload), shape, "int8")


def test_a_zstd_frame_that_wants_a_dictionary_is_refused():
    words = [f"activation {n % 97} of {n % 31}".encode() for n in range(2000)]
    dictionary = zstandard.train_dictionary(4096, words)
    content = zstandard.ZstdCompressor(dict_data=dictionary).compress(bytes(12))
    with pytest.raises(CodecError):
        AFFINE.decode(memoryview(b"\x01" + content), (8,), "float32")


@pytest.mark.parametrize("dtype", ["float32", "int32", "bool", "float16"])
@pytest.mark.parametrize("codec", FEATURE_CODECS, ids=["raw", "exact", "affine"])
def test_damaged_payloads_raise_codec_error_or_decode_in_bounded_memory(codec: Codec, dtype: str):
    generator = random.Random(4)
    tensor = np.random.default_rng(4).normal(size=(2, 3, 8, 8)).astype(dtype)
    payload = codec.encode(tensor)
    tracemalloc.start()
    try:
        for _ in range(400):
            damaged = damage(payload, generator)
            try:
                got = codec.decode(memoryview(damaged), tensor.shape, dtype)
            except CodecError:
                continue
            assert (got.shape, got.dtype) == (tensor.shape, tensor.dtype)
        assert tracemalloc.get_traced_memory()[1] < 300_000
    finally:
        tracemalloc.stop()


def damage(payload: bytes, generator: random.Random) -> bytes:
    """Flip a few bits, and once in four cut the rest off."""
    damaged = bytearray(payload)
    for _ in range(generator.randint(1, 6)):
        damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
    return bytes(
        damaged[: generator.randrange(len(damaged))] if generator.random() < 0.25 else damaged
    )


@given(st.binary(max_size=60), shapes, st.sampled_from(list(DTYPES)))
def test_any_bytes_are_a_tensor_or_a_codec_error(
    payload: bytes, shape: tuple[int, ...], dtype: str
):
    for codec in (RAW, AFFINE, *PICTURE_CODECS):
        try:
            got = codec.decode(memoryview(payload), shape, dtype)
        except CodecError:
            continue
        assert (got.shape, got.dtype) == (shape, DTYPES[dtype])


# Pictures


@pytest.mark.parametrize("codec", PICTURE_CODECS, ids=["jpeg", "webp"])
@pytest.mark.parametrize("size", [(24, 32), (1, 1), (17, 33), (224, 224)])
def test_a_picture_comes_back_in_its_size_and_nearly_its_colours(
    codec: Codec, size: tuple[int, int]
):
    pixels = picture(*size)
    got = travel(codec, pixels)
    assert (got.shape, got.dtype) == (pixels.shape, np.uint8)
    assert np.abs(got.astype(int) - pixels).mean() < 6


@pytest.mark.parametrize("codec", PICTURE_CODECS, ids=["jpeg", "webp"])
def test_a_picture_may_lie_in_memory_in_any_way(codec: Codec):
    flipped = picture()[:, ::-1, ::2]
    plain = np.ascontiguousarray(flipped)
    assert codec.encode(flipped) == codec.encode(plain)
    assert codec.encode(np.asfortranarray(plain)) == codec.encode(plain)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((24, 32, 3), "uint8"),
        ((2, 24, 32, 3), "uint8"),
        ((1, 3, 24, 32), "uint8"),
        ((1, 24, 32, 4), "uint8"),
        ((1, 24, 32, 3), "float32"),
        ((1, 24, 32, 3), "int8"),
        ((1, 0, 32, 3), "uint8"),
        ((1, 24, 0, 3), "uint8"),
        ((), "uint8"),
    ],
)
@pytest.mark.parametrize("codec", PICTURE_CODECS, ids=["jpeg", "webp"])
def test_a_picture_codec_refuses_what_is_no_picture(
    codec: Codec, shape: tuple[int, ...], dtype: str
):
    with pytest.raises(CodecError, match="a picture codec takes"):
        codec.encode(np.zeros(shape, dtype))
    with pytest.raises(CodecError, match="a picture codec takes"):
        codec.decode(memoryview(codec.encode(picture())), shape, dtype)


@pytest.mark.parametrize("codec", PICTURE_CODECS, ids=["jpeg", "webp"])
def test_a_picture_of_another_size_is_refused_before_it_is_decoded(codec: Codec):
    payload = codec.encode(picture(1000, 1000))
    assert peak_bytes_while_refusing(codec, payload, (1, 24, 32, 3), "uint8") < 400_000


@pytest.mark.parametrize("codec", PICTURE_CODECS, ids=["jpeg", "webp"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.8])
def test_a_truncated_picture_is_refused(codec: Codec, share: float):
    payload = codec.encode(np.random.default_rng(5).integers(0, 255, (1, 64, 64, 3), np.uint8))
    with pytest.raises(CodecError):
        codec.decode(memoryview(payload[: int(share * len(payload))]), (1, 64, 64, 3), "uint8")


@pytest.mark.parametrize(
    ("codec", "other"),
    [(JpegCodec(), other) for other in ("PNG", "BMP", "GIF", "TIFF", "WEBP")]
    + [(WebpCodec(), other) for other in ("PNG", "BMP", "GIF", "TIFF", "JPEG")],
)
def test_a_picture_of_another_format_is_refused(codec: Codec, other: str):
    buffer = io.BytesIO()
    Image.fromarray(picture()[0]).save(buffer, other)
    with pytest.raises(CodecError, match="not a"):
        codec.decode(memoryview(buffer.getvalue()), (1, 24, 32, 3), "uint8")


def jpeg_claiming(width: int, height: int) -> bytes:
    payload = bytearray(JpegCodec().encode(picture()))
    at = payload.index(b"\xff\xc0") + 5
    payload[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(payload)


def webp_claiming(width: int, height: int, *, animated: bool) -> bytes:
    """An extended WebP file with any canvas; the picture within stays small."""
    content = WebpCodec().encode(picture())[12:]
    flags = struct.pack("<I", 2 if animated else 0)
    if animated:
        frame = b"".join((n).to_bytes(3, "little") for n in (0, 0, 31, 23, 100)) + b"\0" + content
        content = b"ANIM" + struct.pack("<I", 6) + bytes(6)
        content += b"ANMF" + struct.pack("<I", len(frame)) + frame
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + flags + canvas + content
    return b"RIFF" + struct.pack("<I", len(body)) + body


BOMBS = {
    "jpeg": (JpegCodec(), jpeg_claiming(65_000, 65_000)),
    "webp": (WebpCodec(), webp_claiming(16_383, 16_383, animated=False)),
    "webp-long": (WebpCodec(), webp_claiming(1 << 24, 200, animated=False)),
    "webp-animated": (WebpCodec(), webp_claiming(60_000, 60_000, animated=True)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_picture_that_claims_gigabytes_is_refused_before_they_are_allocated(name: str):
    codec, payload = BOMBS[name]
    started = time.perf_counter()
    assert peak_bytes_while_refusing(codec, payload, (1, 24, 32, 3), "uint8") < 400_000
    assert time.perf_counter() - started < 1


def test_a_picture_that_claims_a_hundred_million_pixels_is_refused_without_a_warning():
    """From 89 to 179 million pixels Pillow only warns; beyond, it raises."""
    with pytest.raises(CodecError):
        JpegCodec().decode(memoryview(jpeg_claiming(10_000, 10_000)), (1, 24, 32, 3), "uint8")


def progressive_jpeg(repeats: int) -> bytes:
    """A progressive JPEG whose last scan is there many times over; each costs a full pass."""
    buffer = io.BytesIO()
    Image.fromarray(picture()[0]).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    scan = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + scan * repeats + content[-2:]


def test_an_ordinary_progressive_jpeg_is_read():
    got = JpegCodec().decode(memoryview(progressive_jpeg(0)), (1, 24, 32, 3), "uint8")
    assert np.abs(got.astype(int) - picture()).mean() < 6


def test_a_jpeg_of_a_thousand_scans_is_refused():
    with pytest.raises(CodecError, match="scans is over the limit of 64"):
        JpegCodec().decode(memoryview(progressive_jpeg(1000)), (1, 24, 32, 3), "uint8")


@pytest.mark.parametrize("codec", PICTURE_CODECS, ids=["jpeg", "webp"])
def test_a_damaged_picture_raises_codec_error_or_decodes_to_its_size(codec: Codec):
    generator, payload = random.Random(6), codec.encode(picture())
    for _ in range(300):
        try:
            got = codec.decode(memoryview(damage(payload, generator)), (1, 24, 32, 3), "uint8")
        except CodecError:
            continue
        assert got.shape == (1, 24, 32, 3)
