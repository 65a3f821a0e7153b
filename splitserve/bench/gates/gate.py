"""One gate: a figure, what it has to reach, and whether it did."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Gate:
    """A figure that has to lie on one side of a limit.

    Args:
        number: as in docs/audit.md, such as D1.
        what: is measured.
        figure: for people, with its interval.
        counted: the end of the interval that counts.
        limit: that it has to reach.
        is_least: whether the limit is from below.
    """

    number: str
    what: str
    figure: str
    counted: float
    limit: float
    is_least: bool = True

    @property
    def is_met(self) -> bool:
        """Whether it holds."""
        reached = self.counted >= self.limit if self.is_least else self.counted <= self.limit
        return bool(reached)

    def as_row(self) -> dict[str, object]:
        """For the document."""
        figures = {"counted": float(self.counted), "limit": float(self.limit)}
        return {**asdict(self), **figures, "is_met": self.is_met}


def as_table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Rows of `as_row` for people."""
    table = Table(title=title, box=SIMPLE_HEAD)
    for name in ("gate", "what", "figure", "needs", "met"):
        table.add_column(name, no_wrap=name != "what")
    for row in rows:
        needs = f"{'>=' if row['is_least'] else '<='} {row['limit']:.4g}"
        met = "[green]yes[/]" if row["is_met"] else "[red]no[/]"
        table.add_row(row["number"], row["what"], row["figure"], needs, met)
    return table
