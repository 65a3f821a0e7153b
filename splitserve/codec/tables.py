"""What `step-ans` knows about one tensor of a cut: found by calibration, shipped in the artifact.

Logarithms of standard deviations and of the step are integers in eighths of an octave, so choosing
a probability table is integer arithmetic and the same on every machine. Format: docs/codec.md.
"""

import io
import math
import re
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import numpy.typing as npt

from splitserve.codec.rans import TOTAL_BITS, WIDTH
from splitserve.errors import CodecError
from splitserve.tensors import DTYPES, FloatArray, TensorSpec

OCTAVE = 8
STEP_ZERO = 512
STEP_CODES = 1024
CLASSES = 48
UNIT_CLASS = 32
OFFSETS = 3
WIDENED_ZERO = 128
PULL_ONE = 64
NPY_START = 10
NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(?P<dtype><[if]8|<f4|<[iu]2|\|u1)',"
    rb" 'fortran_order': (?P<fortran>True|False),"
    rb" 'shape': \((?P<shape>(?:\d{1,9},(?: \d{1,9})?)?)\), \} *\n",  # no field has three sizes
    re.DOTALL,
)
BROKEN_ZIP = (
    zipfile.BadZipFile, ValueError, OSError, EOFError, RuntimeError, OverflowError, struct.error,
)  # fmt: skip
TABLES_LIMIT_BYTES = 256 * 1024 * 1024
BLOCK_MAX = 16
LEVELS_MAX = 8
WEIGHT_MAX = 2.0**40  # its inverse is the least: what lies beyond decodes to infinities


@dataclass(frozen=True, slots=True, eq=False)
class FeatureTables:
    """One tensor's transform, scales and probabilities.

    Coefficients are (K, B): K mixed channels by the B = height x width frequencies of a block.

    Args:
        axis: (), int64; the channel axis of the tensor, 0 when all is one channel.
        block: (2,), int64; height and width of a block.
        basis: (C, K), float32; orthonormal columns that mix the channels; (0, 0) leaves them alone.
        gain: (K,), float32; weight of each mixed channel, for the tail feels some more than others.
        bands: (B,), float32; the same for the frequencies.
        bias: (K, B), float32; mean of the weighted coefficients.
        scales: (K, B), int16; their standard deviation, log2 in eighths of an octave, plus 512.
        cumulative: (48 * 3, 33), uint16; probability tables: standard deviation of 2^-4 to
            2^(15/8) steps, each with the mean 0, 1/8 and 3/8 steps off the centre.
        pulls: (L, B), uint8; per motion level, 64ths of the known frame that predict this one.
        drifts: (L, B), int16; what is left then: added to `scales`.
        widened: (256,), uint8; class of a drift once the rounding of the last frame is added, by
            the drift's class + 128.
    """

    axis: npt.NDArray[np.int64]
    block: npt.NDArray[np.int64]
    basis: FloatArray
    gain: FloatArray
    bands: FloatArray
    bias: FloatArray
    scales: npt.NDArray[np.int16]
    cumulative: npt.NDArray[np.uint16]
    pulls: npt.NDArray[np.uint8]
    drifts: npt.NDArray[np.int16]
    widened: npt.NDArray[np.uint8]

    def check(self, spec: TensorSpec) -> None:
        """Refuse tables that contradict themselves or the tensor.

        Raises:
            CodecError: which field, and why.
        """
        count, size, levels = (_length(value) for value in (self.gain, self.bands, self.pulls))
        mixed = (_length(self.basis), count) if self.basis.size else (0, 0)
        wanted = {
            "axis": ((), np.int64),
            "block": ((2,), np.int64),
            "basis": (mixed, np.float32),
            "gain": ((count,), np.float32),
            "bands": ((size,), np.float32),
            "bias": ((count, size), np.float32),
            "scales": ((count, size), np.int16),
            "cumulative": ((CLASSES * OFFSETS, WIDTH), np.uint16),
            "pulls": ((levels, size), np.uint8),
            "drifts": ((levels, size), np.int16),
            "widened": ((256,), np.uint8),
        }
        for name, (shape, dtype) in wanted.items():
            value = getattr(self, name)
            if value.shape != shape or value.dtype != dtype:
                raise CodecError(
                    f"tables of {spec.name}: {name} is {value.dtype} {value.shape}, not"
                    f" {np.dtype(dtype)} {shape}"
                )
        self._check_values(spec)

    def _check_values(self, spec: TensorSpec) -> None:
        rows = self.cumulative.astype(np.int64)
        channels = len(self.basis) if self.basis.size else len(self.gain)
        axis = int(self.axis)
        numbers = (self.basis, self.gain, self.bands, self.bias)
        logarithms = np.concatenate([self.scales, self.drifts]).astype(np.int32)
        problems = {
            "cumulative does not rise from 0 to the total": (rows[:, 0] != 0).any()
            or (rows[:, -1] != 1 << TOTAL_BITS).any()
            or (np.diff(rows) <= 0).any(),
            "a number is not finite": not all(np.isfinite(value).all() for value in numbers),
            "a weight is not positive": (self.gain <= 0).any() or (self.bands <= 0).any(),
            "a weight is out of range": _beyond(self.gain) or _beyond(self.bands),
            "the block is empty or too large": not (
                (self.block >= 1).all()
                and (self.block <= BLOCK_MAX).all()
                and self.block.prod() == len(self.bands)
            ),
            "the channels are not the tensor's": not 0 <= axis < max(1, len(spec.shape))
            or channels != (spec.shape[axis] if axis else 1),
            "scales are out of range": (np.abs(logarithms) > STEP_CODES).any()
            or (self.pulls > PULL_ONE).any()
            or (self.widened >= WIDENED_ZERO).any(),
            "there are too many motion levels": len(self.pulls) > LEVELS_MAX,
            f"{spec.dtype} cannot be rounded": not may_be_coded(spec),
        }
        for problem, is_there in problems.items():
            if is_there:
                raise CodecError(f"tables of {spec.name}: {problem}")


def write_tables(tables: Sequence[FeatureTables | None]) -> bytes:
    """Store the tables of a cut's egress tensors; None where a tensor has none."""
    arrays = {
        f"{index}.{field.name}": getattr(table, field.name)
        for index, table in enumerate(tables)
        if table is not None
        for field in fields(FeatureTables)
    }
    target = io.BytesIO()
    np.savez(target, allow_pickle=False, **arrays)
    return target.getvalue()


def read_tables(content: bytes, egress: Sequence[TensorSpec]) -> list[FeatureTables | None]:
    """Read the tables of a cut's egress tensors.

    Raises:
        CodecError: not such a file, or one for other tensors.
    """
    arrays = _read_arrays(content)
    names = [field.name for field in fields(FeatureTables)]
    tables: list[FeatureTables | None] = []
    for index, spec in enumerate(egress):
        own = {name: arrays.pop(f"{index}.{name}", None) for name in names}
        missing = [name for name, value in own.items() if value is None]
        if missing and len(missing) < len(names):
            raise CodecError(f"tables of {spec.name}: {missing[0]} is missing")
        table = None if missing else FeatureTables(**own)  # type: ignore[arg-type]
        if table:
            table.check(spec)
        tables.append(table)
    if arrays:
        raise CodecError(f"codec tables hold {next(iter(arrays))!r}, which belongs to no tensor")
    return tables


def may_be_coded(spec: TensorSpec) -> bool:
    """Whether a tensor's numbers may be rounded; wider integers are addresses or counts."""
    dtype = DTYPES[spec.dtype]
    return dtype.kind == "f" or (dtype.kind in "iu" and dtype.itemsize == 1)


def _beyond(weights: FloatArray) -> bool:
    return bool((weights < 1 / WEIGHT_MAX).any() or (weights > WEIGHT_MAX).any())


def _length(value: npt.NDArray[np.generic]) -> int:
    return value.shape[0] if value.ndim else 0


def _read_arrays(content: bytes) -> dict[str, npt.NDArray[np.generic]]:
    if len(content) > TABLES_LIMIT_BYTES:
        raise CodecError(f"codec tables of {len(content)} bytes")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            packed = [entry for entry in entries if entry.compress_type]
            if packed:
                raise CodecError(f"codec tables: {packed[0].filename} is compressed")
            if sum(entry.file_size for entry in entries) > len(content):
                raise CodecError("codec tables claim more bytes than there are")
            stored = {entry.filename: archive.read(entry) for entry in entries}
    except BROKEN_ZIP as error:
        raise CodecError(f"broken codec tables: {error}") from error
    if len(stored) < len(entries):
        raise CodecError("codec tables hold a name twice")
    return {name.removesuffix(".npy"): _read_array(name, file) for name, file in stored.items()}


def _read_array(name: str, file: bytes) -> npt.NDArray[np.generic]:
    """Read one .npy file of version 1: numpy's own reader allocates what the header claims.

    Raises:
        CodecError: another format, a type that no table has, or another size than it claims.
    """
    header = NPY_HEADER.match(file)
    if header is None or header.end() != NPY_START + int.from_bytes(file[8:NPY_START], "little"):
        raise CodecError(f"codec tables: {name} is not an array that tables have")
    dtype = np.dtype(header["dtype"].decode())
    shape = tuple(int(size) for size in header["shape"].split(b",") if size.strip())
    if math.prod(shape) * dtype.itemsize != len(file) - header.end():
        raise CodecError(f"codec tables: {name} is not of the size that it claims")
    values = np.frombuffer(file, dtype, offset=header.end())
    order: Literal["C", "F"] = "F" if header["fortran"] == b"True" else "C"
    return np.array(values.reshape(shape, order=order), dtype.newbyteorder("="), order="C")
