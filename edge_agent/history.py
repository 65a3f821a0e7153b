"""What the cloud is known to remember of a stream, so that the next features are coded by it.

Only what a reply has acknowledged on the connection in use counts: the cloud has decoded it there,
so a frame that builds on it can be decoded too. What was sent and has no reply may be lost.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from splitserve.codec import STREAM_ELEMENTS_MAX, Symbols

Key = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Coded:
    """One frame's tensors as the codec's integers.

    Args:
        symbols: of those tensors that have tables.
        number: room that the frames coded before it take in the cloud.
        built_on: connection whose references its payloads may need; None when they need none.
    """

    symbols: tuple[Symbols, ...]
    number: int = 0
    built_on: int | None = None

    @property
    def room(self) -> int:
        """Room that its tensors take in the cloud."""
        return sum(symbols.room for symbols in self.symbols)


@dataclass(frozen=True, slots=True)
class Known:
    """What the next frame may build on.

    Args:
        number: room that the frames coded before it take in the cloud.
        connection: where it is known; None when nothing is.
        references: by the index of the tensor.
    """

    number: int = 0
    connection: int | None = None
    references: Mapping[int, Symbols] = field(default_factory=dict)


class _Acknowledged(NamedTuple):
    """One tensor, and what is counted of its frame."""

    symbols: Symbols
    number: int
    room: int

    def is_there(self, number: int, room: int) -> bool:
        """Whether the cloud still holds it when it has decoded a frame.

        Each tensor decoded in between pushes others out, and touches an older one.
        """
        between = number - self.number - self.room
        return self.room + 2 * between + room <= STREAM_ELEMENTS_MAX


class History:
    """The features that were acknowledged last on the connection in use.

    The event loop acknowledges, the compute thread asks.

    Args:
        connection: tells the number of the connection in use, None where there is none.
    """

    def __init__(self, connection: Callable[[], int | None]) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._latest: OrderedDict[Key, _Acknowledged] = OrderedDict()
        self._latest_on = 0
        self._number = 0

    def begin(self, position: int, parameter: int, room: int) -> Known:
        """Say what a frame may build on, and count its room.

        Args:
            position: where it is cut.
            parameter: its codec's.
            room: that its tensors take in the cloud.
        """
        connection = self._connection()
        with self._lock:
            number = self._number
            self._number += room
            if connection is None or connection != self._latest_on:
                return Known(number)
            references = {
                index: one.symbols
                for (where, index, rate), one in self._latest.items()
                if (where, rate) == (position, parameter) and one.is_there(number, room)
            }
        return Known(number, connection if references else None, references)

    def acknowledge(self, position: int, coded: Coded, connection: int | None) -> None:
        """Note that the cloud has decoded a frame on a connection."""
        with self._lock:
            if connection is None or connection < self._latest_on:
                return
            if connection > self._latest_on:
                self._latest.clear()
                self._latest_on = connection
            room = coded.room
            for symbols in coded.symbols:
                if symbols.may_be_kept:
                    key = position, symbols.index, symbols.parameter
                    self._latest[key] = _Acknowledged(symbols, coded.number, room)
                    self._latest.move_to_end(key)
            while sum(one.symbols.room for one in self._latest.values()) > STREAM_ELEMENTS_MAX:
                self._latest.popitem(last=False)

    def forget(self) -> None:
        """Build on nothing until more is acknowledged."""
        with self._lock:
            self._latest.clear()
