"""zstd around plain bytes: what is stored as it is, and what a codec has made small already."""

import math

import numpy as np
import zstandard

from splitserve.errors import CodecError
from splitserve.tensors import DTYPES, Array

LEVEL = 1  # measured: level 3 costs time and saves nothing on such bytes
BLOCK_BYTES, CHECKSUM_BYTES = 3, 4  # of zstd's format


def store(tensor: Array) -> bytes:
    """Compress a tensor's values as they are, little-endian."""
    return compress(tensor.astype(tensor.dtype.newbyteorder("<")).tobytes())


def unstore(payload: memoryview, shape: tuple[int, ...], dtype: str) -> Array:
    """Undo `store`.

    Raises:
        CodecError: another size, a broken frame, or a bool that is none.
    """
    stored = DTYPES[dtype].newbyteorder("<")
    content = decompress(payload, math.prod(shape) * stored.itemsize)
    if dtype == "bool" and np.frombuffer(content, np.uint8).max(initial=0) > 1:
        raise CodecError("a bool that is neither 0 nor 1")
    return np.frombuffer(content, stored).reshape(shape).astype(DTYPES[dtype])


def compress(content: bytes) -> bytes:
    """Make one zstd frame that states its size."""
    return zstandard.ZstdCompressor(level=LEVEL).compress(content)


def decompress(payload: memoryview, expected: int) -> bytes:
    """Decompress a frame that states exactly the expected size; nothing larger is allocated.

    Raises:
        CodecError: another size, or a broken frame.
    """
    try:
        frame = zstandard.get_frame_parameters(payload)
        if frame.content_size != expected:
            raise CodecError(
                f"a zstd frame of {frame.content_size} bytes where {expected} are expected"
            )
        if not expected:  # zstandard looks no further once it reads a content size of zero
            end = zstandard.frame_header_size(payload) + BLOCK_BYTES
            if len(payload) != end + CHECKSUM_BYTES * frame.has_checksum:
                raise CodecError(f"an empty zstd frame in {len(payload)} bytes")
        content = zstandard.ZstdDecompressor().decompress(payload, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CodecError(f"a broken zstd frame: {error}") from error
    if len(content) != expected:
        raise CodecError(f"{len(content)} bytes where {expected} are expected")
    return content
