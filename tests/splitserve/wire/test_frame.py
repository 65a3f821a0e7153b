"""The frame format from outside: round trips, every refusal, and hostile bytes."""

import dataclasses
import struct
import time
import tracemalloc

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from splitserve.errors import FrameTooLargeError, WireError
from splitserve.wire import (
    HEADER_BYTES,
    NO_ID,
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

LIMITS = Limits()
ID = bytes(range(16))
ARTIFACT = bytes(range(16, 32))
TOP_MS = 0xFFFFFFFE
FLAGS_AT, CUT_AT, CODEC_AT, COUNT_AT, PARAMETER_AT, DEADLINE_AT, LENGTH_AT, CHECKSUM_AT = (
    *(6, 40, 42, 43, 44, 48, 52, 56),
)

ids = st.binary(min_size=16, max_size=16)
shapes = st.lists(st.integers(0, 6), max_size=8).map(tuple)
sections = st.lists(st.builds(Section, shapes, st.binary(max_size=64)), max_size=5).map(tuple)
milliseconds = st.integers(0, TOP_MS).map(lambda value: value / 1e3)
microseconds = st.integers(0, 0xFFFFFFFF).map(lambda value: value / 1e6)
messages = st.text(max_size=100)
timings = st.builds(
    Timings,
    queue_s=microseconds,
    decode_s=microseconds,
    compute_s=microseconds,
    load=st.integers(0, 0xFFFF).map(lambda value: value / 1e3),
    batch=st.integers(0, 0xFFFF),
)
cuts, codecs = st.integers(0, 0xFFFF), st.integers(0, 0xFF)
requests = st.builds(
    Request,
    request_id=ids,
    artifact_id=ids,
    cut=cuts,
    codec=codecs,
    sections=sections,
    deadline_s=st.none() | milliseconds,
    parameter=st.integers(0, 0xFFFFFFFF),
    wants_top=st.booleans(),
)
replies = st.builds(
    Reply,
    request_id=ids,
    artifact_id=ids,
    cut=cuts,
    codec=codecs,
    sections=sections,
    timings=timings,
)
refusals = st.builds(
    Refusal,
    code=st.sampled_from(RefusalCode),
    message=messages,
    request_id=ids,
    retry_after_s=st.integers(0, 0xFFFFFFFF).map(lambda value: value / 1e3),
)
frames = st.one_of(requests, replies, refusals)


def request(**changes: object) -> Request:
    plain = Request(ID, ARTIFACT, 2, 1, (Section((1, 2, 3), b"features"),))
    return dataclasses.replace(plain, **changes)


def repair(data: bytes, *, length: bool = True) -> bytes:
    """Make length and checksum right again, the way any other implementation would."""
    fixed = bytearray(data)
    if length:
        fixed[LENGTH_AT:CHECKSUM_AT] = struct.pack("<I", len(data) - HEADER_BYTES)
    digest = xxhash.xxh3_64(bytes(fixed[:CHECKSUM_AT]) + bytes(fixed[HEADER_BYTES:]))
    fixed[CHECKSUM_AT:HEADER_BYTES] = struct.pack("<Q", digest.intdigest())
    return bytes(fixed)


def altered(frame: Frame, offset: int, value: bytes) -> bytes:
    """A valid frame with other bytes at an offset, its checksum repaired."""
    data = bytearray(encode_frame(frame))
    data[offset : offset + len(value)] = value
    return repair(bytes(data), length=offset != LENGTH_AT)


def with_payload(frame: Frame, payload: bytes) -> bytes:
    return repair(encode_frame(frame)[:HEADER_BYTES] + payload)


def tensor_header(dims: int, length: int, reserved: int = 0, shape: tuple[int, ...] = ()) -> bytes:
    return struct.pack(f"<BBHI{len(shape)}I", dims, reserved, 0, length, *shape)


def assert_frame_or_wire_error(data: bytes, limits: Limits = LIMITS) -> None:
    try:
        frame = decode_frame(data, limits)
    except WireError:
        return
    assert isinstance(frame, Request | Reply | Refusal)


def peak_bytes_while_refusing(data: bytes, limits: Limits = LIMITS) -> int:
    """Most memory that a refused decode had allocated at once."""
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            decode_frame(data, limits)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@given(frames)
def test_decode_frame_returns_what_encode_frame_got(frame: Frame):
    assert decode_frame(encode_frame(frame), LIMITS) == frame


@given(frames)
def test_decode_frame_reads_bytes_bytearray_and_memoryview_alike(frame: Frame):
    data = encode_frame(frame)
    assert decode_frame(bytearray(data), LIMITS) == frame
    assert decode_frame(memoryview(b"xx" + data)[2:], LIMITS) == frame


@given(requests | replies)
def test_a_frame_is_its_header_its_tensors_and_nothing_else(frame: Request | Reply):
    tensors = sum(8 + 4 * len(s.shape) + len(s.payload) for s in frame.sections)
    timings_bytes = 16 if isinstance(frame, Reply) else 0
    assert len(encode_frame(frame)) == 64 + timings_bytes + tensors


@given(st.floats(0, TOP_MS / 1e3))
def test_deadlines_travel_to_the_millisecond(deadline_s: float):
    got = decode_frame(encode_frame(request(deadline_s=deadline_s)), LIMITS)
    assert abs(got.deadline_s - deadline_s) <= 0.000501


@given(st.floats(0, 4294))
def test_timings_travel_to_the_microsecond(seconds: float):
    reply = Reply(ID, ARTIFACT, 0, 1, (), Timings(seconds, seconds, seconds))
    got = decode_frame(encode_frame(reply), LIMITS).timings
    assert max(abs(t - seconds) for t in (got.queue_s, got.decode_s, got.compute_s)) <= 0.000000501


@given(st.floats(allow_nan=True, allow_infinity=True), st.integers(-5, 1 << 40))
def test_any_time_load_and_batch_is_clamped_into_its_field(value: float, batch: int):
    reply = Reply(ID, ARTIFACT, 0, 1, (), Timings(value, value, value, value, batch))
    got = decode_frame(encode_frame(reply), LIMITS).timings
    assert 0 <= got.queue_s == got.decode_s == got.compute_s <= 0xFFFFFFFF / 1e6
    assert 0 <= got.load <= 65.535
    assert got.batch == min(max(batch, 0), 0xFFFF)
    refusal = decode_frame(encode_frame(Refusal(RefusalCode.CODEC, "", ID, value)), LIMITS)
    assert 0 <= refusal.retry_after_s <= 0xFFFFFFFF / 1e3


@pytest.mark.parametrize(
    ("seconds", "read"),
    [
        (float("inf"), TOP_MS / 1e3),
        (float("nan"), TOP_MS / 1e3),
        (1e300, TOP_MS / 1e3),
        (4294967.295, TOP_MS / 1e3),
        (-1.0, 0.0),
        (float("-inf"), 0.0),
        (0.0004, 0.0),
    ],
)
def test_a_deadline_is_clamped_and_never_turns_into_none(seconds: float, read: float):
    assert decode_frame(encode_frame(request(deadline_s=seconds)), LIMITS).deadline_s == read


@pytest.mark.parametrize("text", ["x" * 600, "é" * 300, "€" * 200, "𝄞" * 150, "x" + "€" * 200])
def test_a_long_message_is_cut_at_a_character(text: str):
    got = decode_frame(encode_frame(Refusal(RefusalCode.CODEC, text)), LIMITS).message
    assert text.startswith(got)
    assert 509 <= len(got.encode()) <= 512


def test_a_message_with_a_lone_surrogate_is_sent_with_a_question_mark():
    frame = encode_frame(Refusal(RefusalCode.CODEC, "file \udce9"))
    assert decode_frame(frame, LIMITS).message == "file ?"


@pytest.mark.parametrize(
    "changes",
    [
        {"request_id": bytes(15)},
        {"request_id": bytes(17)},
        {"artifact_id": b""},
        {"cut": -1},
        {"cut": 0x10000},
        {"codec": 0x100},
        {"parameter": 1 << 32},
        {"sections": (Section((1,), b""),) * 256},
        {"sections": (Section((1 << 32,), b""),)},
        {"sections": (Section((-1,), b""),)},
        {"sections": (Section((1,) * 9, b""),)},
    ],
)
def test_encode_frame_refuses_what_has_no_place_in_a_frame(changes: dict[str, object]):
    with pytest.raises(WireError):
        encode_frame(request(**changes))


@pytest.mark.parametrize("size", [0, 1, 4, 63])
def test_decode_frame_refuses_less_than_a_header(size: int):
    with pytest.raises(WireError, match=f"{size} bytes are no frame"):
        decode_frame(encode_frame(request())[:size], LIMITS)


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (0, b"SPSW", "first four bytes"),
        (4, b"\x00", "version 0"),
        (4, b"\x02", "version 2"),
        (5, b"\x00", "unknown frame kind 0"),
        (5, b"\x04", "unknown frame kind 4"),
        (FLAGS_AT, b"\x02\x00", "unknown flags 0x0002"),
        (FLAGS_AT, b"\x00\x80", "unknown flags 0x8000"),
        (LENGTH_AT, struct.pack("<I", 27), "28 payload bytes where the header claims 27"),
        (LENGTH_AT, struct.pack("<I", 29), "28 payload bytes where the header claims 29"),
        (COUNT_AT, b"\x00", "28 bytes follow the last tensor"),
        (COUNT_AT, b"\x02", "a tensor's header is cut short"),
        (64, b"\x09", "9 dimensions"),
        (65, b"\x01", "unknown flags"),
        (66, b"\x00\x01", "unknown flags"),
        (68, struct.pack("<I", 9), "claims 9 bytes, 8 are there"),
        (68, struct.pack("<I", 0xFFFFFFFF), "claims 4294967295 bytes, 8 are there"),
        (68, struct.pack("<I", 7), "1 bytes follow the last tensor"),
    ],
)
def test_decode_frame_refuses_a_field_it_does_not_know(offset: int, value: bytes, reason: str):
    plain = request()
    assert len(encode_frame(plain)) == 64 + 28
    with pytest.raises(WireError, match=reason):
        decode_frame(altered(plain, offset, value), LIMITS)


def test_decode_frame_refuses_dimensions_that_run_past_the_end():
    data = with_payload(request(), tensor_header(8, 0, shape=(1, 1)))
    with pytest.raises(WireError, match="claims 0 bytes, 0 are there"):
        decode_frame(data, LIMITS)


@pytest.mark.parametrize("frame", [request(), Refusal(RefusalCode.CODEC, "why", ID)])
def test_decode_frame_notices_any_single_flipped_bit(frame: Frame):
    data = encode_frame(frame)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(WireError):
            decode_frame(flipped, LIMITS)


def test_decode_frame_refuses_every_truncation_and_any_extension():
    data = encode_frame(request())
    for size in range(len(data)):
        with pytest.raises(WireError):
            decode_frame(data[:size], LIMITS)
    with pytest.raises(WireError, match="29 payload bytes where the header claims 28"):
        decode_frame(data + b"\0", LIMITS)


@pytest.mark.parametrize("offset", [PARAMETER_AT, DEADLINE_AT])
def test_decode_frame_refuses_a_reply_with_a_parameter_or_a_deadline(offset: int):
    reply = Reply(ID, ARTIFACT, 0, 1, ())
    with pytest.raises(WireError, match="a parameter or a deadline"):
        decode_frame(altered(reply, offset, struct.pack("<I", 7)), LIMITS)


def test_decode_frame_refuses_the_flag_of_a_request_in_any_other_frame():
    for frame in (Reply(ID, ARTIFACT, 1, 1, ()), Refusal(RefusalCode.INTERNAL, "", ID)):
        with pytest.raises(WireError, match="unknown flags 0x0001"):
            decode_frame(altered(frame, FLAGS_AT, b"\x01\x00"), LIMITS)


def test_decode_frame_refuses_a_reply_without_room_for_its_timings():
    with pytest.raises(WireError, match="no room for its timings"):
        decode_frame(with_payload(Reply(ID, ARTIFACT, 0, 1, ()), bytes(15)), LIMITS)


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (24, b"\x01"),
        (CUT_AT, b"\x01\x00"),
        (CODEC_AT, b"\x01"),
        (COUNT_AT, b"\x01"),
        (PARAMETER_AT, struct.pack("<I", 1)),
        (DEADLINE_AT, struct.pack("<I", 1)),
    ],
)
def test_decode_frame_refuses_a_refusal_with_fields_of_a_request(offset: int, value: bytes):
    with pytest.raises(WireError, match="fields of a request"):
        decode_frame(altered(Refusal(RefusalCode.CODEC, "why", ID), offset, value), LIMITS)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "0 payload bytes"),
        (bytes(7), "7 payload bytes"),
        (struct.pack("<HHI", 1, 0, 0) + b"x" * 513, "521 payload bytes"),
        (struct.pack("<HHI", 0, 0, 0), "unknown refusal code 0"),
        (struct.pack("<HHI", 11, 0, 0), "unknown refusal code 11"),
        (struct.pack("<HHI", 1, 1, 0), "unknown refusal code"),
        (struct.pack("<HHI", 1, 0, 0) + b"\xff", "not UTF-8"),
        (struct.pack("<HHI", 1, 0, 0) + "€".encode()[:2], "not UTF-8"),
        (struct.pack("<HHI", 1, 0, 0) + b"\xed\xa0\x80", "not UTF-8"),
    ],
)
def test_decode_frame_refuses_a_broken_refusal(payload: bytes, reason: str):
    with pytest.raises(WireError, match=reason):
        decode_frame(with_payload(Refusal(RefusalCode.CODEC, ""), payload), LIMITS)


def test_refusal_codes_keep_their_numbers():
    assert {code.name: code.value for code in RefusalCode} == {
        "MALFORMED": 1,
        "TOO_LARGE": 2,
        "UNKNOWN_ARTIFACT": 3,
        "CONTRACT": 4,
        "CODEC": 5,
        "OVERLOADED": 6,
        "DRAINING": 7,
        "EXPIRED": 8,
        "INTERNAL": 9,
        "REFERENCE": 10,
    }


def test_decode_frame_accepts_exactly_the_frame_limit():
    data = encode_frame(request())
    decode_frame(data, Limits(frame_bytes=len(data)))
    with pytest.raises(FrameTooLargeError, match=f"{len(data)} bytes is over the limit"):
        decode_frame(data, Limits(frame_bytes=len(data) - 1))


def test_decode_frame_accepts_exactly_the_tensor_limit():
    frame = request(sections=(Section((), b""),) * 3)
    assert decode_frame(encode_frame(frame), Limits(tensors=3)) == frame
    with pytest.raises(FrameTooLargeError, match="3 tensors are over the limit of 2"):
        decode_frame(encode_frame(frame), Limits(tensors=2))


@pytest.mark.parametrize("shape", [(3, 5), (15,), (1, 15, 1), (0, 15), (15, 0, 0)])
def test_decode_frame_accepts_exactly_the_element_limit(shape: tuple[int, ...]):
    data = encode_frame(request(sections=(Section(shape, b""),)))
    assert decode_frame(data, Limits(elements=15)).sections[0].shape == shape
    with pytest.raises(FrameTooLargeError, match="15 elements, the limit is 14"):
        decode_frame(data, Limits(elements=14))


@pytest.mark.parametrize("shape", [(0xFFFFFFFF,) * 8, (0xFFFFFFFF, 0xFFFFFFFF, 0), (1 << 16,) * 4])
def test_decode_frame_refuses_sizes_whose_product_is_beyond_memory(shape: tuple[int, ...]):
    with pytest.raises(FrameTooLargeError):
        decode_frame(encode_frame(request(sections=(Section(shape, b""),))), LIMITS)


HUGE = struct.pack("<I", 0xFFFFFFFF)


@pytest.mark.parametrize(
    "data",
    [
        altered(request(), LENGTH_AT, HUGE),
        altered(request(), 68, HUGE),
        altered(request(), 72, HUGE),
        altered(request(), 72, HUGE * 3),
        altered(request(), COUNT_AT, b"\xff"),
    ],
    ids=["frame", "tensor bytes", "one size", "all sizes", "tensors"],
)
def test_a_claim_of_four_gigabytes_costs_nothing(data: bytes):
    started = time.perf_counter()
    assert peak_bytes_while_refusing(data) < 64_000
    assert time.perf_counter() - started < 0.5  # generous: the machine may be busy


def test_a_claim_within_a_careless_limit_costs_nothing_either():
    limits = Limits(frame_bytes=1 << 40, tensors=255, elements=1 << 62)
    assert peak_bytes_while_refusing(altered(request(), LENGTH_AT, HUGE), limits) < 64_000
    assert peak_bytes_while_refusing(altered(request(), 68, HUGE), limits) < 64_000


def test_sections_are_views_into_the_frame():
    frame = request(sections=(Section((8, 1 << 20), bytes(8 << 20)), Section((3,), b"abc")))
    data = encode_frame(frame)
    tracemalloc.start()
    try:
        got = decode_frame(data, LIMITS)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 64_000
    assert all(isinstance(section.payload, memoryview) for section in got.sections)
    assert all(section.payload.obj is data for section in got.sections)
    assert got == frame


@given(st.binary(max_size=400))
def test_any_bytes_are_a_frame_or_a_wire_error(data: bytes):
    assert_frame_or_wire_error(data)


@given(st.integers(0, 255), st.binary(min_size=58, max_size=400))
def test_any_bytes_behind_the_right_magic_are_a_frame_or_a_wire_error(kind: int, rest: bytes):
    assert_frame_or_wire_error(b"SPSV\x01" + bytes((kind,)) + rest)
    assert_frame_or_wire_error(repair(b"SPSV\x01" + bytes((kind,)) + b"\0\0" + rest))


@st.composite
def mutated_frames(draw: st.DrawFn) -> bytes:
    """Valid frames, damaged in a few places, with length and checksum right again."""
    data = bytearray(encode_frame(draw(frames)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(5, len(data) - 1))
        value = draw(
            st.sampled_from([b"\0", b"\1", b"\x09", b"\xff", HUGE]) | st.binary(max_size=8)
        )
        match draw(st.sampled_from(["overwrite", "overwrite", "insert", "cut"])):
            case "overwrite":
                data[at : at + len(value)] = value
            case "insert":
                data[max(at, HEADER_BYTES) : max(at, HEADER_BYTES)] = value
            case "cut":
                del data[max(at, HEADER_BYTES) :]
    data[FLAGS_AT : FLAGS_AT + 2] = bytes(2)
    data.extend(bytes(max(0, HEADER_BYTES - len(data))))
    return repair(bytes(data))


@given(mutated_frames())
def test_a_mutated_frame_with_a_right_checksum_is_a_frame_or_a_wire_error(data: bytes):
    assert_frame_or_wire_error(data)
    assert_frame_or_wire_error(data, Limits(frame_bytes=1 << 40, tensors=1, elements=4))


@given(mutated_frames())
def test_what_decodes_encodes_to_the_same_bytes(data: bytes):
    try:
        frame = decode_frame(data, LIMITS)
    except WireError:
        return
    assert encode_frame(frame) == data


def test_a_refusal_without_a_request_has_the_zero_id():
    assert (
        decode_frame(encode_frame(Refusal(RefusalCode.MALFORMED, "")), LIMITS).request_id == NO_ID
    )
