"""A link's rate over time, read from a file and played on a running link."""

import csv
import math
import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from splitserve.errors import UsageError


class Change(NamedTuple):
    """From this second on the link has this rate; 0 lets nothing pass."""

    at_s: float
    rate_bps: float


def read_trace(path: Path) -> list[Change]:
    """Read lines `seconds,bits_per_second`, the seconds rising; lines with # say something else.

    Raises:
        UsageError: no such file, no line, or one that is none of these; the message names it.
    """
    try:
        with path.open(newline="") as file:
            rows = [row for row in csv.reader(file) if row and not row[0].startswith("#")]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    changes = [_change(row, path) for row in rows]
    if not changes:
        raise UsageError(f"{path}: no line `seconds,bits_per_second` in it")
    if any(after.at_s <= before.at_s for before, after in pairwise(changes)):
        raise UsageError(f"{path}: the seconds do not grow from line to line")
    return changes


def _change(row: Sequence[str], path: Path) -> Change:
    try:
        at_s, rate_bps = (float(cell) for cell in row)
        if not (0 <= at_s < math.inf and 0 <= rate_bps < math.inf):
            raise ValueError
    except ValueError as error:
        raise UsageError(f"{path}: {','.join(row)!r} is no `seconds,bits_per_second`") from error
    return Change(at_s, rate_bps)


def play(trace: Sequence[Change], set_rate: Callable[[float], None], stop: threading.Event) -> None:
    """Make every change at its time, counted from now, until the end or until `stop` is set."""
    started = time.perf_counter()
    for change in trace:
        if stop.wait(max(0.0, started + change.at_s - time.perf_counter())):
            return
        set_rate(change.rate_bps)
