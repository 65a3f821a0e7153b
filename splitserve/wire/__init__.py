"""Bytes on the network: what a request, a reply and a refusal look like. Format: docs/wire.md."""

from splitserve.wire.frame import (
    CONTENT_TYPE,
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

__all__ = [
    "CONTENT_TYPE",
    "HEADER_BYTES",
    "NO_ID",
    "Frame",
    "Limits",
    "Refusal",
    "RefusalCode",
    "Reply",
    "Request",
    "Section",
    "Timings",
    "decode_frame",
    "encode_frame",
]
