"""Integers to bytes and back by range asymmetric numeral systems, with static integer tables.

Every value is coded with one table (cumulative frequencies of the values -15 to 15 and an escape,
in units of 2^-14) after its lowest `shift` bits, which carry next to nothing, were set aside to be
stored as they are. One 32-bit state, renormalised by 16-bit words; it starts and must end at 2^16,
so damage shows. Whole values are one stream; or a coarse stream (value // 2 towards zero, by the
same tables, summed) may travel first and a fine one restore the rest: together they are as short.

The loops exist twice, with the same bytes: compiled from rans.c where a compiler was there at
installation, and here. Everything is integer arithmetic, so every machine decodes the same.

Source: Duda, "Asymmetric numeral systems", arXiv:1311.2540; the bit-wise details are our own.
"""

import ctypes
from bisect import bisect_right
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from splitserve.errors import CodecError

Ints = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint16]

TOTAL_BITS = 14
LOW = 1 << 16
REACH = 15
ESCAPE = 2 * REACH + 1
WIDTH = ESCAPE + 2
ESCAPE_LENGTH_BITS = 5
ESCAPE_BITS_MAX = 18
VALUE_MAX = (1 << ESCAPE_BITS_MAX) - 1
SHIFT_MAX = TOTAL_BITS
LIBRARY = Path(__file__).with_name("_rans.so")
VERSION = 1


class Mode(IntEnum):
    """What a stream holds."""

    WHOLE = 0
    COARSE = 1
    FINE = 2


class Model(NamedTuple):
    """How each value of a stream is coded; all arrays have one entry per value but the last.

    Args:
        tables: row of `cumulative` for each value.
        shifts: lowest bits of each value that are stored as they are, 0 to 14.
        cumulative: (tables, 33), uint16; rises strictly from 0 to 2^14.
    """

    tables: Bytes
    shifts: Bytes
    cumulative: Words


def _load() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(LIBRARY))
        if library.rans_version() != VERSION:
            return None
    except (OSError, AttributeError):  # no compiler at installation, or another platform's file
        return None
    library.rans_encode.restype = library.rans_decode.restype = ctypes.c_int64
    return library


LIBRARY_LOADED = _load()


def encode_values(values: Ints, model: Model, mode: Mode, *, native: bool = True) -> bytes:
    """Turn values into a stream.

    Args:
        values: (n,), int32, magnitudes at most `VALUE_MAX`.
        model: how each is coded.
        mode: FINE leaves out what COARSE tells.
        native: use the compiled loops where they are.

    Returns:
        An even count of bytes, at least 4.
    """
    if native and LIBRARY_LOADED:
        return _encode_native(LIBRARY_LOADED, values, model, mode)
    writer = _Writer()
    rows = model.cumulative.tolist()
    steps = zip(
        values[::-1].tolist(), model.tables[::-1].tolist(), model.shifts[::-1].tolist(), strict=True
    )
    for value, table, shift in steps:
        if shift:
            writer.put_shifted(rows[table], value + (1 << (shift - 1)), shift, mode)
        elif mode == Mode.FINE:
            writer.put_fine(rows[table], value)
        else:
            writer.put_value(rows[table], value, mode)
    return writer.close()


def decode_values(
    stream: memoryview, model: Model, mode: Mode, coarse: Ints | None = None, *, native: bool = True
) -> Ints:
    """Turn a stream back into values.

    Args:
        stream: exactly what `encode_values` gave.
        model: the same as there.
        mode: the same as there; COARSE gives coarse values.
        coarse: with FINE, what COARSE gave.
        native: use the compiled loops where they are.

    Raises:
        CodecError: the stream does not fit: too short, too long, damaged.
    """
    if len(stream) < 4 or len(stream) % 2:
        raise CodecError(f"an entropy-coded stream of {len(stream)} bytes")
    words = np.frombuffer(stream, "<u2").astype(np.uint16, copy=False)
    values = np.zeros(len(model.tables), np.int32) if coarse is None else coarse.copy()
    if native and LIBRARY_LOADED:
        problem = _decode_native(LIBRARY_LOADED, words, model, mode, values)
        if problem:
            raise CodecError(f"a damaged entropy-coded stream (problem {-problem})")
        return values
    return _decode(_Reader(words), model, mode, values)


def _decode(reader: "_Reader", model: Model, mode: Mode, values: Ints) -> Ints:
    rows = model.cumulative.tolist()
    steps = zip(values.tolist(), model.tables.tolist(), model.shifts.tolist(), strict=True)
    decoded = []
    for coarse, table, shift in steps:
        if mode == Mode.FINE:
            half = 1 << (shift - 1) if shift else 0
            value = (
                2 * coarse + reader.take_raw(1) - half
                if shift
                else reader.take_fine(rows[table], coarse)
            )
        elif shift:
            bits = shift - 1 if mode == Mode.COARSE else shift
            value = reader.take_value(rows[table], Mode.WHOLE) << bits | reader.take_raw(bits)
            value -= 0 if mode == Mode.COARSE else 1 << (shift - 1)
        else:
            value = reader.take_value(rows[table], mode)
        decoded.append(value)
    reader.close()
    return np.array(decoded, np.int64).astype(np.int32)


def halve(value: int) -> int:
    """Coarse value: half, towards zero."""
    return -(-value >> 1) if value < 0 else value >> 1


def _cell(coarse: int) -> tuple[int, int]:
    """First and last value that share a coarse value."""
    first = 2 * coarse if coarse > 0 else 2 * coarse - 1
    last = 2 * coarse if coarse < 0 else 2 * coarse + 1
    return first, last


def _stretched(row: list[int], cell: tuple[int, int], value: int) -> int:
    """Where a value begins when the frequencies of its cell are stretched over the total."""
    low, high = row[cell[0] + REACH], row[cell[1] + 1 + REACH]
    return ((row[value + REACH] - low) << TOTAL_BITS) // (high - low)


class _Writer:
    """Collects words from the last to be read to the first."""

    def __init__(self) -> None:
        self._state = LOW
        self._words: list[int] = []

    def put(self, start: int, end: int) -> None:
        freq = end - start
        state = self._state
        if state >= freq << (32 - TOTAL_BITS):
            self._words.append(state & 0xFFFF)
            state >>= 16
        quotient, rest = divmod(state, freq)
        self._state = (quotient << TOTAL_BITS) + rest + start

    def put_raw(self, value: int, bits: int) -> None:
        if bits > 0:
            room = TOTAL_BITS - bits
            self.put(value << room, (value + 1) << room)

    def put_value(self, row: list[int], value: int, mode: Mode) -> None:
        if -REACH <= value <= REACH:
            first, last = _cell(halve(value)) if mode == Mode.COARSE else (value, value)
            self.put(row[first + REACH], row[last + 1 + REACH])
            return
        if mode == Mode.COARSE:
            self._put_escape(halve(value), (REACH + 1) // 2)
        else:
            self._put_escape(value, REACH + 1)
        self.put(row[ESCAPE], row[ESCAPE + 1])

    def _put_escape(self, value: int, reach: int) -> None:
        rest = abs(value) - reach
        bits = rest.bit_length()
        self.put_raw(rest & 0x1FF, min(bits, 9))
        self.put_raw(rest >> 9, bits - 9)
        self.put_raw(bits, ESCAPE_LENGTH_BITS)
        self.put_raw(int(value < 0), 1)

    def put_shifted(self, row: list[int], moved: int, shift: int, mode: Mode) -> None:
        low = moved & ((1 << shift) - 1)
        if mode == Mode.FINE:
            self.put_raw(low & 1, 1)
            return
        if mode == Mode.COARSE:
            self.put_raw(low >> 1, shift - 1)
        else:
            self.put_raw(low, shift)
        self.put_value(row, moved >> shift, Mode.WHOLE)

    def put_fine(self, row: list[int], value: int) -> None:
        if abs(value) > REACH:
            self.put_raw(value & 1, 1)
            return
        cell = _cell(halve(value))
        self.put(_stretched(row, cell, value), _stretched(row, cell, value + 1))

    def close(self) -> bytes:
        words = [self._state >> 16, self._state & 0xFFFF, *reversed(self._words)]
        return np.array(words, "<u2").tobytes()


class _Reader:
    """Reads words in order."""

    def __init__(self, words: Words) -> None:
        head, *rest = words.tolist()
        self._state: int = head << 16 | rest[0]
        if self._state < LOW:
            raise CodecError("a damaged entropy-coded stream (problem 3)")
        self._words = iter(rest[1:])

    @property
    def slot(self) -> int:
        return self._state & ((1 << TOTAL_BITS) - 1)

    def take(self, start: int, end: int) -> None:
        state = (end - start) * (self._state >> TOTAL_BITS) + self.slot - start
        if state < LOW:
            word = next(self._words, None)
            if word is None:
                raise CodecError("a damaged entropy-coded stream (problem 1)")
            state = state << 16 | word
        self._state = state

    def take_raw(self, bits: int) -> int:
        if bits <= 0:
            return 0
        room = TOTAL_BITS - bits
        value = self.slot >> room
        self.take(value << room, (value + 1) << room)
        return value

    def take_value(self, row: list[int], mode: Mode) -> int:
        symbol = bisect_right(row, self.slot) - 1
        if symbol == ESCAPE:
            self.take(row[ESCAPE], row[ESCAPE + 1])
            return self._take_escape((REACH + 1) // 2 if mode == Mode.COARSE else REACH + 1)
        value = symbol - REACH
        if mode != Mode.COARSE:
            self.take(row[symbol], row[symbol + 1])
            return value
        first, last = _cell(halve(value))
        self.take(row[first + REACH], row[last + 1 + REACH])
        return halve(value)

    def _take_escape(self, reach: int) -> int:
        is_negative, bits = self.take_raw(1), self.take_raw(ESCAPE_LENGTH_BITS)
        if bits > ESCAPE_BITS_MAX:
            raise CodecError("a damaged entropy-coded stream (problem 4)")
        rest = self.take_raw(bits - 9) << 9
        rest |= self.take_raw(min(bits, 9))
        return -(rest + reach) if is_negative else rest + reach

    def take_fine(self, row: list[int], coarse: int) -> int:
        if abs(coarse) > REACH // 2:
            bit = self.take_raw(1)
            return 2 * coarse - bit if coarse < 0 else 2 * coarse + bit
        cell = _cell(coarse)
        value, slot = cell[0], self.slot
        while value < cell[1] and _stretched(row, cell, value + 1) <= slot:
            value += 1
        self.take(_stretched(row, cell, value), _stretched(row, cell, value + 1))
        return value

    def close(self) -> None:
        if next(self._words, None) is not None:
            raise CodecError("a damaged entropy-coded stream (problem 2)")
        if self._state != LOW:
            raise CodecError("a damaged entropy-coded stream (problem 3)")


def _encode_native(library: ctypes.CDLL, values: Ints, model: Model, mode: Mode) -> bytes:
    values = np.ascontiguousarray(values, np.int32)
    # A value takes at most its table's 14 bits, 14 stored ones, and an escape's 6 + 18.
    words = np.empty(4 * len(values) + 4, np.uint16)
    count = library.rans_encode(
        *_pointers(values, model), ctypes.c_int32(mode), _pointer(words), ctypes.c_int64(len(words))
    )
    return bytes(words[len(words) - count :].astype("<u2", copy=False).data)


def _decode_native(
    library: ctypes.CDLL, words: Words, model: Model, mode: Mode, values: Ints
) -> int:
    tables, shifts, count, cumulative = _pointers(values, model)[1:]
    return int(
        library.rans_decode(
            _pointer(words), ctypes.c_int64(len(words)), tables, shifts, count, cumulative,
            ctypes.c_int32(mode), _pointer(values),
        )
    )  # fmt: skip


def _pointers(values: Ints, model: Model) -> tuple[ctypes.c_void_p | ctypes.c_int64, ...]:
    return (
        _pointer(values),
        _pointer(model.tables),
        _pointer(model.shifts),
        ctypes.c_int64(len(values)),
        _pointer(model.cumulative),
    )


def _pointer(array: npt.NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
