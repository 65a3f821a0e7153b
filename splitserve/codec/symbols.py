"""The integers of one tensor, and what both sides of a stream remember of them."""

import struct
import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from splitserve.codec.rans import Ints
from splitserve.errors import ReferenceMissingError

REFERENCE_ELEMENTS_MAX = 262_144
REFERENCE_ELEMENTS_MIN = 1024  # what a smaller tensor counts for, so that they stay few
STREAM_ELEMENTS_MAX = 1_048_576
NAME = struct.Struct("<II")

Small = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True, eq=False)
class Symbols:
    """Coefficients in steps, rounded.

    Args:
        index: which egress tensor of the cut.
        parameter: the step's code.
        values: (batch, K, blocks, B), int32, magnitudes at most 32767.
    """

    index: int
    parameter: int
    values: Ints

    @property
    def tag(self) -> int:
        """Name of these integers: a hash, so that no other frame can be mistaken for them."""
        digest = xxhash.xxh3_64(NAME.pack(self.index, self.parameter))
        digest.update(self.values.astype("<i2").tobytes())
        return digest.intdigest()

    @property
    def may_be_kept(self) -> bool:
        """Whether both sides remember them; larger ones would fill the memory of a service."""
        return self.values.size <= REFERENCE_ELEMENTS_MAX

    @property
    def room(self) -> int:
        """Share of `STREAM_ELEMENTS_MAX` that it takes; 0 when it is not kept."""
        return _room(self.values.size) if self.may_be_kept else 0


def _room(size: int) -> int:
    return max(size, REFERENCE_ELEMENTS_MIN)


class References:
    """What one side of a stream has decoded lately, by tag; the oldest make room. Thread-safe.

    `STREAM_ELEMENTS_MAX` coefficients of two bytes are kept at most.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[int, tuple[int, int, Small]] = OrderedDict()
        self._room = 0
        self._lock = threading.Lock()

    def keep(self, symbols: Symbols) -> None:
        """Remember what was decoded, if it is small enough."""
        if not symbols.may_be_kept:
            return
        tag, small = symbols.tag, symbols.values.astype(np.int16)
        with self._lock:
            if tag in self._kept:
                self._room -= _room(self._kept.pop(tag)[2].size)
            self._kept[tag] = symbols.index, symbols.parameter, small
            self._room += symbols.room
            while self._room > STREAM_ELEMENTS_MAX:
                self._room -= _room(self._kept.popitem(last=False)[1][2].size)

    def find(self, tag: int) -> Symbols:
        """Find what a payload builds on.

        Raises:
            ReferenceMissingError: it is not, or no longer, here.
        """
        with self._lock:
            if tag not in self._kept:
                raise ReferenceMissingError("the payload builds on a frame that is not known here")
            self._kept.move_to_end(tag)
            index, parameter, small = self._kept[tag]
        return Symbols(index, parameter, small.astype(np.int32))
