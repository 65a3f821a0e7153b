"""`step-ans`: one uniform step for all coefficients of a tensor, entropy coded by integer tables.

Features are mixed and transformed (transform.py), divided by the step and rounded; the integers are
coded by their standard deviation (predict.py, rans.py). The step is a number of the frame's header,
so a sender changes its rate from one frame to the next. In a stream the same integers may be coded
by what the receiver knows of an earlier frame (symbols.py): shorter, and never another answer.
Payload format: docs/codec.md.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from splitserve.codec.packing import store, unstore
from splitserve.codec.predict import TRIED, Alone, Predictor
from splitserve.codec.rans import Ints, Mode, Model, decode_values, encode_values
from splitserve.codec.symbols import References, Symbols
from splitserve.codec.tables import OCTAVE, STEP_CODES, STEP_ZERO, FeatureTables
from splitserve.codec.transform import Transform, round_to_dtype
from splitserve.errors import CodecError
from splitserve.tensors import Array, FloatArray

SYMBOL_MAX = 32767
STORED, WHOLE, LAYERED, COARSE = range(4)
HEAD = struct.Struct("<BB")
TAG = struct.Struct("<Q")
LAYER = struct.Struct("<I")


def step_size(parameter: int) -> float:
    """Size of the step that a code stands for; codes are eighths of an octave.

    Raises:
        CodecError: a code out of range.
    """
    if not 0 <= parameter < STEP_CODES:
        raise CodecError(f"step code {parameter} is not 0 to {STEP_CODES - 1}")
    return float(2.0 ** ((parameter - STEP_ZERO) / OCTAVE))


class StepAnsCodec:
    """Features of one cut at one rate.

    Args:
        tables: one for each egress tensor, None for one that is stored as it is.
        parameter: the step's code.
        layered: send a coarse layer first, so that `coarse_part` may leave out the rest.
        native: use the compiled loops where they are.
    """

    name: ClassVar[str] = "step-ans"
    number: ClassVar[int] = 5
    takes_pixels: ClassVar[bool] = False

    def __init__(
        self,
        tables: Sequence[FeatureTables | None],
        parameter: int,
        *,
        layered: bool = False,
        native: bool = True,
    ) -> None:
        self.parameter = parameter
        self._step = np.float32(step_size(parameter))
        self._parts = [
            _Part(Transform(table), Predictor(table, parameter)) if table else None
            for table in tables
        ]
        self._layered = layered
        self._native = native

    def at(self, parameter: int, *, layered: bool = False) -> "StepAnsCodec":
        """Build the codec of another rate; it shares the matrices of this one."""
        other = StepAnsCodec((), parameter, layered=layered, native=self._native)
        other._parts = [
            part and _Part(part.transform, Predictor(part.predictor.tables, parameter))
            for part in self._parts
        ]
        return other

    def encode(self, tensor: Array, index: int = 0) -> bytes:
        """Encode one tensor by itself.

        Args:
            tensor: features, any numeric dtype.
            index: which egress tensor of the cut it is.

        Raises:
            CodecError: values that are not finite.
        """
        if self._part(index) is None:
            return HEAD.pack(STORED, 0) + store(tensor)
        return self.pack(self.quantise(tensor, index))

    def decode(
        self,
        payload: memoryview,
        shape: tuple[int, ...],
        dtype: str,
        index: int = 0,
        references: References | None = None,
    ) -> Array:
        """Decode one tensor. What it gives is kept in `references` for payloads to come.

        Raises:
            ReferenceMissingError: it builds on what is not in `references`.
            CodecError: anything else that does not fit.
        """
        if len(payload) < HEAD.size:
            raise CodecError(f"a step-ans payload of {len(payload)} bytes")
        kind = payload[0]
        part = self._part(index)
        if (kind == STORED) != (part is None) or kind > COARSE:
            raise CodecError(f"a step-ans payload of kind {kind} for {dtype}")
        if part is None:
            if payload[1]:
                raise CodecError(f"a stored step-ans payload of motion level {payload[1]}")
            return unstore(payload[HEAD.size :], shape, dtype)
        unpacked = self._unpack(payload, part.shape(shape), index, references)
        return round_to_dtype(part.transform.backward(unpacked * self._step, shape), dtype)

    def is_coded(self, index: int) -> bool:
        """Whether a tensor has tables; else it is stored as it is."""
        return self._part(index) is not None

    def elements(self, shape: tuple[int, ...], index: int = 0) -> int:
        """Count what decoding a tensor of a shape allocates: padded coefficients, or the elements.

        Raises:
            CodecError: its tables are not for such a tensor.
        """
        part = self._part(index)
        return math.prod(part.shape(shape) if part else shape)

    def quantise(self, tensor: Array, index: int = 0) -> Symbols:
        """Round a tensor's coefficients to the step.

        Raises:
            CodecError: no tables for such a tensor, or values that are not finite.
        """
        part = self._coded_part(index)
        shape = part.shape(tensor.shape)
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = part.transform.forward(tensor)
            scaled *= 1 / self._step
            if not np.isfinite(scaled.sum(dtype=np.float64)):
                raise CodecError("step-ans cannot carry infinities, NaN or values near them")
        np.rint(scaled, out=scaled)
        np.clip(scaled, -SYMBOL_MAX, SYMBOL_MAX, out=scaled)
        places = part.alone(shape).places
        if len(places) == scaled.size:
            return Symbols(index, self.parameter, scaled.astype(np.int32))
        values = np.zeros(shape, np.int32)
        values.reshape(-1)[places] = scaled.reshape(-1)[places]
        return Symbols(index, self.parameter, values)

    def pack(self, symbols: Symbols, reference: Symbols | None = None) -> bytes:
        """Code integers by themselves or after a known frame, whichever is shorter.

        Args:
            symbols: what `quantise` gave.
            reference: what the receiver has decoded; of another rate or shape, it does not help.
        """
        part = self._coded_part(symbols.index)
        alone = part.alone(symbols.values.shape)
        values = symbols.values.reshape(-1)[alone.places]
        kind = LAYERED if self._layered else WHOLE
        best = HEAD.pack(kind, 0) + self._code(values, alone.model)
        if reference is None or not _is_alike(symbols, reference):
            return best
        level = self._best_level(part, values, alone.model, reference)
        if not level:
            return best
        after = part.predictor.after(reference.values, level)
        coded = self._code(after.sign * (values - after.mean), after.model)
        return min(best, HEAD.pack(kind, level) + TAG.pack(reference.tag) + coded, key=len)

    def _best_level(self, part: "_Part", values: Ints, alone: Model, reference: Symbols) -> int:
        """Motion level that codes the strongest coefficients shortest; 0 when none helps."""
        first = values[:TRIED]
        model = Model(alone.tables[:TRIED], alone.shifts[:TRIED], alone.cumulative)
        sizes = [len(encode_values(first, model, Mode.WHOLE, native=self._native))]
        for level in range(1, part.levels + 1):
            after = part.predictor.first_after(reference.values, level)
            rest = after.sign * (first - after.mean)
            sizes.append(len(encode_values(rest, after.model, Mode.WHOLE, native=self._native)))
        return int(np.argmin(sizes))

    def _code(self, values: Ints, model: Model) -> bytes:
        modes = (Mode.COARSE, Mode.FINE) if self._layered else (Mode.WHOLE,)
        streams = [encode_values(values, model, mode, native=self._native) for mode in modes]
        sizes = LAYER.pack(len(streams[0])) if self._layered else b""
        return sizes + b"".join(streams)

    def _unpack(
        self,
        payload: memoryview,
        shape: tuple[int, ...],
        index: int,
        references: References | None,
    ) -> FloatArray:
        """Read coefficients in steps; a coarse layer alone gives the middles of its cells."""
        kind, level = HEAD.unpack_from(payload)
        part = self._coded_part(index)
        alone = part.alone(shape)
        body = payload[HEAD.size :]
        after = None
        if level:
            if level > part.levels or len(body) < TAG.size:
                raise CodecError(f"a step-ans payload of motion level {level}")
            reference = (references or References()).find(TAG.unpack_from(body)[0])
            if reference.parameter != self.parameter or reference.values.shape != shape:
                raise CodecError("the known frame is of another rate or shape")
            after, body = part.predictor.after(reference.values, level), body[TAG.size :]
        model = after.model if after else alone.model
        coded, middles = self._decode(kind, body, model)
        values = np.zeros(shape, np.int32)
        flat = values.reshape(-1)
        flat[alone.places] = after.mean + after.sign * coded if after else coded
        limit = SYMBOL_MAX + (middles is not None)  # the cell of the last one may begin beyond it
        if max(int(flat.max(initial=0)), -int(flat.min(initial=0))) > limit:
            raise CodecError("a coefficient out of range")
        if middles is None:
            if references is not None:
                references.keep(Symbols(index, self.parameter, values))
            return values.astype(np.float32)
        coefficients = values.astype(np.float32)
        coefficients.reshape(-1)[alone.places] += after.sign * middles if after else middles
        return coefficients

    def _decode(self, kind: int, body: memoryview, model: Model) -> tuple[Ints, FloatArray | None]:
        """Decode the streams; of a coarse one alone, also how far its middles lie from there."""
        if kind == WHOLE:
            return decode_values(body, model, Mode.WHOLE, native=self._native), None
        size = LAYER.unpack_from(body)[0] if len(body) >= LAYER.size else len(body)
        coarse_stream = body[LAYER.size : LAYER.size + size]
        fine_stream = body[LAYER.size + size :]
        if len(coarse_stream) != size or (kind == COARSE and len(fine_stream)):
            raise CodecError("a step-ans payload whose layers do not fit")
        coarse = decode_values(coarse_stream, model, Mode.COARSE, native=self._native)
        if kind == LAYERED:
            fine = decode_values(fine_stream, model, Mode.FINE, coarse, native=self._native)
            return fine, None
        return _middles(coarse, model)

    def _part(self, index: int) -> "_Part | None":
        return self._parts[index] if index < len(self._parts) else None

    def _coded_part(self, index: int) -> "_Part":
        part = self._part(index)
        if part is None:
            raise CodecError(f"step-ans has no tables for tensor {index}; calibrate the artifact")
        return part


@dataclass(frozen=True, slots=True)
class _Part:
    """What the codec holds for one tensor."""

    transform: Transform
    predictor: Predictor

    @property
    def levels(self) -> int:
        return len(self.predictor.tables.pulls)

    def shape(self, tensor_shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        return self.transform.coefficients_shape(tensor_shape)

    def alone(self, shape: tuple[int, ...]) -> Alone:
        return self.predictor.alone(shape[0], shape[2])


def coarse_part(payload: bytes) -> bytes:
    """Leave out the fine layer of a layered payload; any other comes back as it is."""
    kind, level = HEAD.unpack_from(payload)
    if kind != LAYERED:
        return payload
    start = HEAD.size + (TAG.size if level else 0)
    end = start + LAYER.size + LAYER.unpack_from(payload, start)[0]
    return HEAD.pack(COARSE, level) + payload[HEAD.size : end]


def _is_alike(symbols: Symbols, reference: Symbols) -> bool:
    same = (symbols.index, symbols.parameter) == (reference.index, reference.parameter)
    return same and symbols.values.shape == reference.values.shape and symbols.may_be_kept


def _middles(coarse: Ints, model: Model) -> tuple[Ints, FloatArray]:
    """First value of each coarse cell, and how far from there its middle lies."""
    half = np.where(model.shifts > 0, 1 << np.maximum(model.shifts.astype(np.int32) - 1, 0), 0)
    first = 2 * coarse - half
    beside = np.where(model.shifts > 0, np.float32(0.5), np.sign(coarse) * np.float32(0.5))
    return first.astype(np.int32), beside.astype(np.float32)
