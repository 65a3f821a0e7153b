"""Frames: a 64-byte little-endian header, then the payload. The decoder is total.

Any bytes give a frame or a `WireError`; nothing is copied and nothing is allocated in proportion
to what a frame claims. Layout and test vectors: docs/wire.md, tests/golden/.
"""

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import xxhash

from splitserve.errors import FrameTooLargeError, WireError

MAGIC = b"SPSV"
VERSION = 1
CONTENT_TYPE = "application/vnd.splitserve.frame"
NO_DEADLINE = 0xFFFFFFFF
NO_ID = bytes(16)
MAX_DIMS = 8
MESSAGE_LIMIT_BYTES = 512
WANTS_TOP = 1  # a request's flag; no other frame has any

HEAD = struct.Struct("<4sBBH16s16sHBBIII")  # all of the header but the checksum
CHECKSUM = struct.Struct("<Q")
HEADER_BYTES = HEAD.size + CHECKSUM.size
SECTION = struct.Struct("<BBHI")
TIMINGS = struct.Struct("<IIIHH")
REFUSAL = struct.Struct("<HHI")

Buffer = bytes | bytearray | memoryview


class Kind(IntEnum):
    """What a frame is; numbers are never reused."""

    REQUEST = 1
    REPLY = 2
    REFUSAL = 3


class RefusalCode(IntEnum):
    """Why a service did not answer; numbers are never reused."""

    MALFORMED = 1
    TOO_LARGE = 2
    UNKNOWN_ARTIFACT = 3
    CONTRACT = 4
    CODEC = 5
    OVERLOADED = 6
    DRAINING = 7
    EXPIRED = 8
    INTERNAL = 9
    REFERENCE = 10


@dataclass(frozen=True, slots=True)
class Limits:
    """What a decoder accepts.

    Args:
        frame_bytes: largest frame, header included.
        tensors: most tensors in one frame.
        elements: most elements that one tensor may claim, a size of zero counted as one.
    """

    frame_bytes: int = 16 * 1024 * 1024
    tensors: int = 64
    elements: int = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Section:
    """One tensor on the wire: its shape and its codec's payload."""

    shape: tuple[int, ...]
    payload: Buffer


@dataclass(frozen=True, slots=True)
class Timings:
    """What the service measured, sent with every reply so that the agent need not probe.

    Args:
        queue_s: from the complete frame to the start of work.
        decode_s: the codec.
        compute_s: the tail.
        load: share of the service's execution slots in use, 0 to 1.
        batch: requests that ran together.
    """

    queue_s: float = 0.0
    decode_s: float = 0.0
    compute_s: float = 0.0
    load: float = 0.0
    batch: int = 1


@dataclass(frozen=True, slots=True)
class Request:
    """Features at a cut, for the tail to finish.

    Args:
        request_id: 16 bytes, chosen by the sender, echoed in the answer.
        artifact_id: 16 bytes, `Artifact.id` of the sender.
        cut: position in the artifact, 0 for the model's input.
        codec: the codec's number.
        sections: one per egress tensor, in the manifest's order.
        deadline_s: seconds the sender still waits, None for no deadline; kept in milliseconds.
        parameter: the codec's own 32 bits (a step, a seed).
        wants_top: whether the best classes of a classifier are all that the sender reads.
    """

    request_id: bytes
    artifact_id: bytes
    cut: int
    codec: int
    sections: tuple[Section, ...]
    deadline_s: float | None = None
    parameter: int = 0
    wants_top: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """The model's outputs for one request, in the manifest's order."""

    request_id: bytes
    artifact_id: bytes
    cut: int
    codec: int
    sections: tuple[Section, ...]
    timings: Timings = Timings()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no reply; `request_id` is zero where the request could not be read."""

    code: RefusalCode
    message: str
    request_id: bytes = NO_ID
    retry_after_s: float = 0.0


Frame = Request | Reply | Refusal


def encode_frame(frame: Frame) -> bytes:
    """Turn a frame into bytes.

    Raises:
        WireError: a field does not fit its place in the header.
    """
    try:
        return _encode(frame)
    except struct.error as error:
        raise WireError(f"a field does not fit the header: {error}") from error


def _encode(frame: Frame) -> bytes:
    if isinstance(frame, Refusal):
        text = frame.message.encode(errors="replace")[:MESSAGE_LIMIT_BYTES]
        message = text.decode(errors="ignore").encode()
        prefix = REFUSAL.pack(frame.code, 0, _clamp(frame.retry_after_s * 1e3, 32))
        fields: tuple[int, ...] = (0, 0, 0, 0, NO_DEADLINE)
        body: list[Buffer] = [prefix, message]
        kind, ids = Kind.REFUSAL, (frame.request_id, NO_ID)
    else:
        is_request = isinstance(frame, Request)
        kind = Kind.REQUEST if is_request else Kind.REPLY
        ids = (frame.request_id, frame.artifact_id)
        body = [] if isinstance(frame, Request) else [_encode_timings(frame.timings)]
        body += _encode_sections(frame.sections)
        parameter = frame.parameter if isinstance(frame, Request) else 0
        deadline = _encode_deadline(frame.deadline_s) if isinstance(frame, Request) else NO_DEADLINE
        fields = (frame.cut, frame.codec, len(frame.sections), parameter, deadline)
    if any(len(part) != 16 for part in ids):
        raise WireError("request and artifact ids are 16 bytes each")
    length = sum(len(part) for part in body)
    flags = WANTS_TOP if isinstance(frame, Request) and frame.wants_top else 0
    head = HEAD.pack(MAGIC, VERSION, kind, flags, *ids, *fields, length)
    return b"".join((head, CHECKSUM.pack(_checksum(head, body)), *body))


def _encode_sections(sections: Sequence[Section]) -> list[Buffer]:
    parts: list[Buffer] = []
    for section in sections:
        if len(section.shape) > MAX_DIMS:
            raise WireError(f"{len(section.shape)} dimensions are over the limit of {MAX_DIMS}")
        dims = struct.pack(f"<{len(section.shape)}I", *section.shape)
        head = SECTION.pack(len(section.shape), 0, 0, len(section.payload))
        parts += [head + dims, section.payload]
    return parts


def _encode_timings(timings: Timings) -> bytes:
    times = (timings.queue_s, timings.decode_s, timings.compute_s)
    return TIMINGS.pack(
        *(_clamp(value * 1e6, 32) for value in times),
        _clamp(timings.load * 1e3, 16),
        _clamp(timings.batch, 16),
    )


def _encode_deadline(deadline_s: float | None) -> int:
    return NO_DEADLINE if deadline_s is None else min(_clamp(deadline_s * 1e3, 32), NO_DEADLINE - 1)


def _clamp(value: float, bits: int) -> int:
    """Round into an unsigned field; what is too large or not a number becomes its largest value."""
    top = (1 << bits) - 1
    return top if math.isnan(value) or value >= top else round(max(0.0, value))


def _checksum(head: Buffer, body: Sequence[Buffer]) -> int:
    digest = xxhash.xxh3_64(head)
    for part in body:
        digest.update(part)
    return digest.intdigest()


def decode_frame(data: Buffer, limits: Limits) -> Frame:
    """Read one frame; sections are views into `data`.

    Raises:
        FrameTooLargeError: the frame, or a tensor in it, claims more than `limits` allow.
        WireError: anything else that is not a valid frame.
    """
    view = memoryview(data)
    if len(view) < HEADER_BYTES:
        raise WireError(f"{len(view)} bytes are no frame; the header alone has {HEADER_BYTES}")
    kind, flags, ids, fields = _read_header(view, limits)
    payload = view[HEADER_BYTES:]
    if CHECKSUM.unpack_from(view, HEAD.size)[0] != _checksum(view[: HEAD.size], [payload]):
        raise WireError("checksum mismatch")
    if kind not in READERS:
        raise WireError(f"unknown frame kind {kind}")
    frame = READERS[Kind(kind)](ids, fields, payload, limits)
    return replace(frame, wants_top=True) if flags and isinstance(frame, Request) else frame


Fields = Sequence[int]
Ids = tuple[bytes, bytes]


def _read_header(view: memoryview, limits: Limits) -> tuple[int, int, Ids, Fields]:
    magic, version, kind, flags, request_id, artifact_id, *fields, length = HEAD.unpack_from(view)
    if magic != MAGIC:
        raise WireError("the first four bytes are not those of a frame")
    if version != VERSION:
        raise WireError(f"frame version {version}; this side speaks version {VERSION}")
    if HEADER_BYTES + length > limits.frame_bytes:
        raise FrameTooLargeError(
            f"a frame of {HEADER_BYTES + length} bytes is over the limit of {limits.frame_bytes}"
        )
    if flags & ~(WANTS_TOP if kind == Kind.REQUEST else 0):
        raise WireError(f"unknown flags {flags:#06x}")
    if len(view) - HEADER_BYTES != length:
        raise WireError(
            f"{len(view) - HEADER_BYTES} payload bytes where the header claims {length}"
        )
    return kind, flags, (request_id, artifact_id), fields


def _read_request(ids: Ids, fields: Fields, payload: memoryview, limits: Limits) -> Frame:
    cut, codec, count, parameter, deadline = fields
    sections = _read_sections(payload, count, limits)
    deadline_s = None if deadline == NO_DEADLINE else deadline / 1e3
    return Request(*ids, cut, codec, sections, deadline_s, parameter)


def _read_reply(ids: Ids, fields: Fields, payload: memoryview, limits: Limits) -> Frame:
    cut, codec, count, parameter, deadline = fields
    if parameter or deadline != NO_DEADLINE:
        raise WireError("a reply carries a parameter or a deadline")
    if len(payload) < TIMINGS.size:
        raise WireError(f"a reply of {len(payload)} bytes has no room for its timings")
    queue, decode, compute, load, batch = TIMINGS.unpack_from(payload)
    timings = Timings(queue / 1e6, decode / 1e6, compute / 1e6, load / 1e3, batch)
    sections = _read_sections(payload[TIMINGS.size :], count, limits)
    return Reply(*ids, cut, codec, sections, timings)


def _read_refusal(ids: Ids, fields: Fields, payload: memoryview, _: Limits) -> Frame:
    if any(fields[:4]) or fields[4] != NO_DEADLINE or ids[1] != NO_ID:
        raise WireError("a refusal carries fields of a request")
    if not REFUSAL.size <= len(payload) <= REFUSAL.size + MESSAGE_LIMIT_BYTES:
        raise WireError(f"a refusal has {len(payload)} payload bytes")
    code, reserved, retry_after = REFUSAL.unpack_from(payload)
    if reserved or code not in RefusalCode.__members__.values():
        raise WireError(f"unknown refusal code {code}")
    try:
        message = bytes(payload[REFUSAL.size :]).decode()
    except UnicodeDecodeError as error:
        raise WireError("a refusal's message is not UTF-8") from error
    return Refusal(RefusalCode(code), message, ids[0], retry_after / 1e3)


def _read_sections(payload: memoryview, count: int, limits: Limits) -> tuple[Section, ...]:
    if count > limits.tensors:
        raise FrameTooLargeError(f"{count} tensors are over the limit of {limits.tensors}")
    sections = []
    for _ in range(count):
        section, payload = _read_section(payload, limits)
        sections.append(section)
    if payload:
        raise WireError(f"{len(payload)} bytes follow the last tensor")
    return tuple(sections)


def _read_section(payload: memoryview, limits: Limits) -> tuple[Section, memoryview]:
    if len(payload) < SECTION.size:
        raise WireError("a tensor's header is cut short")
    dims, reserved, reserved_too, length = SECTION.unpack_from(payload)
    if dims > MAX_DIMS or reserved or reserved_too:
        raise WireError(f"a tensor with {dims} dimensions or unknown flags")
    start = SECTION.size + 4 * dims
    if len(payload) < start + length:
        raise WireError(f"a tensor claims {length} bytes, {max(0, len(payload) - start)} are there")
    shape = struct.unpack_from(f"<{dims}I", payload, SECTION.size)
    elements = math.prod(size or 1 for size in shape)  # a zero hides no size that numpy refuses
    if elements > limits.elements:
        raise FrameTooLargeError(
            f"a tensor claims {elements} elements, the limit is {limits.elements}"
        )
    return Section(shape, payload[start : start + length]), payload[start + length :]


Reader = Callable[[Ids, Fields, memoryview, Limits], Frame]
READERS: dict[Kind, Reader] = {
    Kind.REQUEST: _read_request,
    Kind.REPLY: _read_reply,
    Kind.REFUSAL: _read_refusal,
}
