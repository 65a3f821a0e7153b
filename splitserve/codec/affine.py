"""`affine-u8`: one byte a value with a minimum and a step per channel, then zstd.

The baseline among the codecs: no calibration, no tables. Side information is rounded outwards to
bfloat16, so the range always covers the values.
"""

import math
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from splitserve.codec.packing import compress, decompress, store, unstore
from splitserve.codec.symbols import References
from splitserve.errors import CodecError
from splitserve.tensors import DTYPES, Array, FloatArray

STORED = 0
AFFINE = 1
LEVELS = 255
CHANNEL_AXIS = 1
FLOAT16_MAX = 65504
MIN_CHANNEL_ELEMENTS = 8  # below this the four bytes of side information outweigh a channel's gain


class AffineCodec:
    """One mode byte, then a zstd frame of minima, steps and values.

    Floats are quantised per channel (axis 1 of tensors with three or more dimensions), or over the
    whole tensor where channels are tiny. Integers are stored as they are.
    """

    name: ClassVar[str] = "affine-u8"
    number: ClassVar[int] = 2
    takes_pixels: ClassVar[bool] = False
    parameter = 0

    def encode(self, tensor: Array, index: int = 0) -> bytes:  # noqa: ARG002
        """Quantise and compress.

        Raises:
            CodecError: a float tensor that holds an infinity or no number.
        """
        if tensor.dtype.kind != "f":
            return bytes((STORED,)) + store(tensor)
        with np.errstate(over="ignore", invalid="ignore"):
            rows = _rows(tensor.astype(np.float32, copy=False))
        low, high = rows.min(axis=1, initial=np.inf), rows.max(axis=1, initial=-np.inf)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise CodecError("affine-u8 cannot carry infinities, NaN or empty tensors; use raw")
        minimum = _bfloat16_down(low)
        span = high.astype(np.float64) - _float32(minimum)
        step = _bfloat16_up((span / LEVELS).astype(np.float32))
        with np.errstate(over="ignore", invalid="ignore"):
            if not np.isfinite(_float32(minimum) + LEVELS * _float32(step)).all():
                raise CodecError("affine-u8 cannot carry values near the end of float32; use raw")
        scale = np.where(step == 0, np.float32(1), _float32(step))
        levels = np.rint((rows - _float32(minimum)[:, None]) / scale[:, None])
        values = np.clip(levels, 0, LEVELS).astype(np.uint8)
        content = minimum.tobytes() + step.tobytes() + values.tobytes()
        return bytes((AFFINE,)) + compress(content)

    def decode(
        self,
        payload: memoryview,
        shape: tuple[int, ...],
        dtype: str,
        index: int = 0,  # noqa: ARG002
        references: References | None = None,  # noqa: ARG002
    ) -> Array:
        """Decompress to exactly the size that the shape asks for, then restore the values.

        Raises:
            CodecError: an unknown mode, another size, a broken zstd frame or side information
                that is not finite.
        """
        mode = payload[0] if len(payload) else -1
        is_float = DTYPES[dtype].kind == "f"
        if mode != (AFFINE if is_float else STORED):
            raise CodecError(f"affine-u8 payload with mode {mode} for {dtype}")
        elements = math.prod(shape)
        if not is_float:
            return unstore(payload[1:], shape, dtype)
        channels = _channels(shape)
        content = decompress(payload[1:], 4 * channels + elements)
        minimum, step = np.frombuffer(content, "<u2", count=2 * channels).reshape(2, -1)
        values = np.frombuffer(content, np.uint8, offset=4 * channels).reshape(channels, -1)
        offset, scale = _float32(minimum)[:, None], _float32(step)[:, None]
        with np.errstate(over="ignore", invalid="ignore"):
            rows = values * scale + offset
            finite = np.isfinite(offset + LEVELS * scale).all()
        if not finite:
            raise CodecError("affine-u8 side information is not finite")
        if dtype == "float16":  # the minimum was rounded outwards, perhaps past float16's end
            rows = rows.clip(-FLOAT16_MAX, FLOAT16_MAX)
        return _unrows(rows, shape).astype(DTYPES[dtype], copy=False)


def _channels(shape: tuple[int, ...]) -> int:
    """Groups with their own range: the channels, or one where channels are tiny."""
    if len(shape) <= CHANNEL_AXIS + 1:
        return 1
    channels = shape[CHANNEL_AXIS]
    return channels if math.prod(shape) >= MIN_CHANNEL_ELEMENTS * channels > 0 else 1


def _rows(tensor: FloatArray) -> FloatArray:
    """Bring each group's values into one row: (groups, elements / groups)."""
    channels = _channels(tensor.shape)
    if channels == 1:
        return tensor.reshape(1, -1)
    return np.moveaxis(tensor, CHANNEL_AXIS, 0).reshape(channels, -1)


def _unrows(rows: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    if len(rows) == 1:
        return rows.reshape(shape)
    moved = (shape[CHANNEL_AXIS], shape[0], *shape[CHANNEL_AXIS + 1 :])
    return np.ascontiguousarray(np.moveaxis(rows.reshape(moved), 0, CHANNEL_AXIS))


def _bfloat16_down(values: FloatArray) -> npt.NDArray[np.uint16]:
    """Round to the nearest bfloat16 that is not above."""
    high = (values.view(np.uint32) >> 16).astype("<u2")
    above = _float32(high) > values
    return np.where(above, high + np.uint16(1), high).astype("<u2")  # magnitude up: value down


def _bfloat16_up(values: FloatArray) -> npt.NDArray[np.uint16]:
    """Round non-negative values to the nearest bfloat16 that is not below."""
    high = (values.view(np.uint32) >> 16).astype("<u2")
    return np.where(_float32(high) < values, high + np.uint16(1), high).astype("<u2")


def _float32(halves: npt.NDArray[np.uint16]) -> FloatArray:
    return (halves.astype(np.uint32) << 16).view(np.float32)
