"""`raw`: the values themselves, floats as float16 where they fit."""

import math
from typing import ClassVar

import numpy as np

from splitserve.codec.symbols import References
from splitserve.errors import CodecError
from splitserve.tensors import DTYPES, Array

EXACT = 0
HALF = 1


class RawCodec:
    """One mode byte, then the values, little-endian, row-major.

    Args:
        exact: keep float32 as it is; replies do.
    """

    name: ClassVar[str] = "raw"
    number: ClassVar[int] = 1
    takes_pixels: ClassVar[bool] = False
    parameter = 0

    def __init__(self, *, exact: bool = False) -> None:
        self.exact = exact

    def encode(self, tensor: Array, index: int = 0) -> bytes:  # noqa: ARG002
        """Store float32 as float16 unless that would make a finite value infinite."""
        if tensor.dtype == np.float32 and not self.exact:
            with np.errstate(over="ignore"):
                half = tensor.astype("<f2")
            if np.array_equal(np.isfinite(half), np.isfinite(tensor)):
                return bytes((HALF,)) + half.tobytes()
        return bytes((EXACT,)) + tensor.astype(tensor.dtype.newbyteorder("<"), copy=False).tobytes()

    def decode(
        self,
        payload: memoryview,
        shape: tuple[int, ...],
        dtype: str,
        index: int = 0,  # noqa: ARG002
        references: References | None = None,  # noqa: ARG002
    ) -> Array:
        """Read the values back; the payload's length must fit the shape.

        Raises:
            CodecError: an unknown mode or another length.
        """
        mode = payload[0] if len(payload) else -1
        if mode not in (EXACT, HALF) or (mode == HALF and dtype != "float32"):
            raise CodecError(f"raw payload with mode {mode} for {dtype}")
        stored = np.dtype("<f2") if mode == HALF else DTYPES[dtype].newbyteorder("<")
        expected = 1 + math.prod(shape) * stored.itemsize
        if len(payload) != expected:
            raise CodecError(f"raw payload of {len(payload)} bytes where {expected} are expected")
        values = np.frombuffer(payload, stored, offset=1).reshape(shape)
        if dtype == "bool" and values.view(np.uint8).max(initial=0) > 1:
            raise CodecError("a bool that is neither 0 nor 1")
        return values.astype(DTYPES[dtype])
