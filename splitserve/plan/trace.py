"""A link's rate over time, as a file of lines `seconds,bits_per_second`."""

import csv
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from splitserve.errors import UsageError

ALONE_S = 1.0  # what a trace of one line lasts: where only shares count any length will do


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
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader if row and not row[0].startswith("#")]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    changes = [_change(row, f"{path}: line {number}") for number, row in rows]
    if not changes:
        raise UsageError(f"{path}: no line `seconds,bits_per_second` in it")
    for (number, _), (before, after) in zip(rows[1:], pairwise(changes), strict=True):
        if after.at_s <= before.at_s:
            raise UsageError(
                f"{path}: line {number}: {after.at_s:g} s after {before.at_s:g} s; the seconds"
                " must grow from line to line"
            )
    return changes


def spans_s(changes: Sequence[Change]) -> list[float]:
    """Seconds that each rate lasts; the last one as long as the one before it."""
    spans = [after.at_s - before.at_s for before, after in pairwise(changes)]
    return [*spans, spans[-1] if spans else ALONE_S]


def _change(row: Sequence[str], where: str) -> Change:
    try:
        at_s, rate_bps = (float(cell) for cell in row)
        if not (0 <= at_s < math.inf and 0 <= rate_bps < math.inf):
            raise ValueError
    except ValueError as error:
        raise UsageError(
            f"{where}: {','.join(row)!r} is not `seconds,bits_per_second`, both zero or more"
        ) from error
    return Change(at_s, rate_bps)
