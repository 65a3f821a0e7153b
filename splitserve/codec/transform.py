"""Features to coefficients and back: mix the channels, then a cosine transform over each block.

Channels of a trained network are correlated and so are neighbouring positions; the two fixed
matrices take most of both away, and scale what is left by how much the tail feels it.
"""

import math
from functools import cached_property

import numpy as np
import numpy.typing as npt

from splitserve.codec.tables import BLOCK_MAX, FeatureTables
from splitserve.errors import CodecError
from splitserve.tensors import DTYPES, Array, FloatArray


def block_sizes(height: int, width: int) -> tuple[int, int]:
    """Block that divides a map with the least padding: at most 16 by 16, all of one size."""
    rows, columns = (math.ceil(max(1, size) / BLOCK_MAX) for size in (height, width))
    return math.ceil(max(1, height) / rows), math.ceil(max(1, width) / columns)


def cosine_matrix(size: int) -> npt.NDArray[np.float64]:
    """Orthonormal DCT-II: (size, size), float64; row f holds frequency f."""
    grid = np.pi / size * np.outer(np.arange(size), np.arange(size) + 0.5)
    matrix = np.cos(grid) * math.sqrt(2 / size)
    matrix[0] = math.sqrt(1 / size)
    return matrix


def to_maps(tensor: Array, axis: int) -> FloatArray:
    """Bring a tensor to (batch, channels, height, width), float32; axis 0 means one channel."""
    values = tensor.astype(np.float32, copy=False)
    batch = values.shape[0] if values.ndim else 1
    if axis:
        channels_first = np.moveaxis(values, axis, 1)
        rest = channels_first.shape[2:]
    else:
        channels_first, rest = values, values.shape[1:]
    width = rest[-1] if rest else 1
    height = math.prod(rest[:-1])
    channels = values.shape[axis] if axis else 1
    return np.ascontiguousarray(channels_first).reshape(batch, channels, height, width)


def from_maps(maps: FloatArray, shape: tuple[int, ...], axis: int) -> FloatArray:
    """Undo `to_maps`."""
    if not axis:
        return maps.reshape(shape)
    moved = (shape[0], shape[axis], *(size for i, size in enumerate(shape) if i not in (0, axis)))
    return np.ascontiguousarray(np.moveaxis(maps.reshape(moved), 1, axis))


def round_to_dtype(values: FloatArray, dtype: str) -> Array:
    """Turn decoded values into the tensor's type: integers are rounded, narrow types clipped.

    Args:
        values: float32.
        dtype: a float, int8 or uint8.
    """
    wanted = DTYPES[dtype]
    if wanted.kind == "f" and wanted.itemsize >= values.itemsize:
        return values.astype(wanted, copy=False)
    if wanted.kind == "f":
        limit = float(np.finfo(wanted).max)
        return values.clip(-limit, limit).astype(wanted)
    limits = np.iinfo(wanted)
    return np.rint(values).clip(limits.min, limits.max).astype(wanted)


class Transform:
    """One tensor's way to coefficients (batch, K, blocks, B), float32, and back."""

    def __init__(self, tables: FeatureTables) -> None:
        self._tables = tables
        self._axis = int(tables.axis)
        self._block = int(tables.block[0]), int(tables.block[1])

    @cached_property
    def _to_bands(self) -> FloatArray:
        rows, columns = (cosine_matrix(size) for size in self._block)
        return (np.kron(rows, columns) * self._tables.bands[:, None]).astype(np.float32)

    @cached_property
    def _from_bands(self) -> FloatArray:
        rows, columns = (cosine_matrix(size) for size in self._block)
        return (np.kron(rows, columns) / self._tables.bands[:, None]).astype(np.float32)

    @cached_property
    def _to_mixed(self) -> FloatArray:
        return np.ascontiguousarray((self._tables.basis * self._tables.gain).T)

    @cached_property
    def _from_mixed(self) -> FloatArray:
        return np.ascontiguousarray(self._tables.basis / self._tables.gain)

    def coefficients_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """Shape of the coefficients of a tensor.

        Raises:
            CodecError: the tables are not for such a tensor.
        """
        channels = len(self._tables.basis) if self._tables.basis.size else len(self._tables.gain)
        is_mixed_alike = not self._axis or shape[self._axis : self._axis + 1] == (channels,)
        if 0 in shape or not is_mixed_alike:
            raise CodecError(f"tables of {channels} channels do not fit the shape {shape}")
        maps = _maps_shape(shape, self._axis)
        rows, columns = self._grid(*maps[2:])
        return maps[0], len(self._tables.gain), rows * columns, len(self._tables.bands)

    def forward(self, tensor: Array) -> FloatArray:
        """Turn a tensor into coefficients."""
        maps = to_maps(tensor, self._axis)
        batch, channels, height, width = maps.shape
        if self._tables.basis.size:
            mixed = self._to_mixed @ maps.reshape(batch, channels, -1)
        else:
            mixed = maps.reshape(batch, channels, -1) * self._tables.gain[:, None]
        blocks = self._to_blocks(mixed.reshape(batch, -1, height, width))
        flat = blocks.reshape(-1, blocks.shape[-1]) @ self._to_bands.T  # one product, not many
        return np.asarray(flat.reshape(blocks.shape) - self._tables.bias[:, None])

    def backward(self, coefficients: FloatArray, shape: tuple[int, ...]) -> FloatArray:
        """Turn coefficients back into a tensor of this shape, float32."""
        batch, channels, height, width = _maps_shape(shape, self._axis)
        blocks = np.matmul(coefficients + self._tables.bias[:, None], self._from_bands)
        mixed = self._from_blocks(blocks, height, width).reshape(batch, -1, height * width)
        if self._tables.basis.size:
            maps = self._from_mixed @ mixed
        else:
            maps = mixed / self._tables.gain[:, None]
        return from_maps(maps.reshape(batch, channels, height, width), shape, self._axis)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        return math.ceil(height / self._block[0]), math.ceil(width / self._block[1])

    def _to_blocks(self, maps: FloatArray) -> FloatArray:
        batch, count, height, width = maps.shape
        (rows, columns), (high, wide) = self._grid(height, width), self._block
        below, beside = rows * high - height, columns * wide - width
        if below or beside:
            maps = np.pad(maps, ((0, 0), (0, 0), (0, below), (0, beside)), mode="edge")
        split = maps.reshape(batch, count, rows, high, columns, wide).swapaxes(3, 4)
        return split.reshape(batch, count, rows * columns, high * wide)

    def _from_blocks(self, blocks: FloatArray, height: int, width: int) -> FloatArray:
        batch, count = blocks.shape[:2]
        (rows, columns), (high, wide) = self._grid(height, width), self._block
        split = blocks.reshape(batch, count, rows, columns, high, wide).swapaxes(3, 4)
        return split.reshape(batch, count, rows * high, columns * wide)[:, :, :height, :width]


def _maps_shape(shape: tuple[int, ...], axis: int) -> tuple[int, int, int, int]:
    rest = [size for index, size in enumerate(shape) if index not in (0, axis)]
    batch, channels = shape[0] if shape else 1, shape[axis] if axis else 1
    return batch, channels, math.prod(rest[:-1]), rest[-1] if rest else 1
