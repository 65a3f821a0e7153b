"""What the cloud is known to remember of a stream, so that the next features are coded by it.

Only what a reply has acknowledged on the connection in use counts: the cloud has decoded it there,
so a frame that builds on it can be decoded too. What was sent and has no reply may be lost.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from splitserve.codec import REFERENCES_MAX, Symbols

LIFETIME = REFERENCES_MAX // 2  # tensors: each decoded one pushes one out, and touches an older one

Key = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Coded:
    """One frame's tensors as the codec's integers.

    Args:
        symbols: of those tensors that have tables.
        number: tensors that were coded before it.
        built_on: connection whose references its payloads may need; None when they need none.
    """

    symbols: tuple[Symbols, ...]
    number: int = 0
    built_on: int | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """What the next frame may build on.

    Args:
        number: tensors that were coded before it.
        connection: where it is known; None when nothing is.
        references: by the index of the tensor.
    """

    number: int = 0
    connection: int | None = None
    references: Mapping[int, Symbols] = field(default_factory=dict)


class History:
    """The features that were acknowledged last on the connection in use.

    The event loop acknowledges, the compute thread asks.

    Args:
        connection: tells the number of the connection in use, None where there is none.
    """

    def __init__(self, connection: Callable[[], int | None]) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._latest: OrderedDict[Key, tuple[int, Symbols]] = OrderedDict()
        self._latest_on = 0
        self._number = 0

    def begin(self, position: int, parameter: int, tensors: int) -> Known:
        """Say what a frame may build on, and count its tensors.

        Args:
            position: where it is cut.
            parameter: its codec's.
            tensors: how many are to be coded.
        """
        connection = self._connection()
        with self._lock:
            number = self._number
            self._number += tensors
            if connection is None or connection != self._latest_on:
                return Known(number)
            references = {
                index: symbols
                for (where, index, rate), (since, symbols) in self._latest.items()
                if (where, rate) == (position, parameter) and number - since <= LIFETIME
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
            for symbols in coded.symbols:
                if symbols.may_be_kept:
                    key = position, symbols.index, symbols.parameter
                    self._latest[key] = coded.number, symbols
                    self._latest.move_to_end(key)
            while len(self._latest) > REFERENCES_MAX:
                self._latest.popitem(last=False)

    def forget(self) -> None:
        """Build on nothing until more is acknowledged."""
        with self._lock:
            self._latest.clear()
