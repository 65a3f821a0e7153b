"""The picture of a rate table: agreement against bytes, one curve per codec."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

STYLES = {
    "step-ans": ("#1b6ca8", "o", "-"),
    "coarse": ("#5fa8d3", "o", "--"),
    "affine-u8": ("#7a4fa3", "D", "none"),
    "raw": ("#555555", "s", "none"),
    "jpeg": ("#c8553d", "^", "-"),
    "webp": ("#d9a441", "v", "-"),
    "order-0": ("#8a8a8a", ".", ":"),
}
LOWEST_AGREEMENT = 85


@dataclass(frozen=True, slots=True)
class Point:
    """One setting: kilobytes, agreement in percent and its interval."""

    kilobytes: float
    agreement: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Curve:
    """One codec's settings."""

    codec: str
    label: str
    points: Sequence[Point]


def draw_rates(title: str, curves: Sequence[Curve], target: Path) -> None:
    """Write one cut's plot as PNG."""
    figure = Figure(figsize=(7.2, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for curve in curves:
        points = sorted(
            (point for point in curve.points if point.high >= LOWEST_AGREEMENT),
            key=lambda point: point.kilobytes,
        )
        if not points:
            continue
        colour, marker, line = STYLES[curve.codec]
        sizes, values = [p.kilobytes for p in points], [p.agreement for p in points]
        axes.plot(
            sizes, values, color=colour, marker=marker, linestyle=line, markersize=4.5,
            linewidth=1.6, label=curve.label,
        )  # fmt: skip
        if curve.codec != "order-0":
            axes.fill_between(
                sizes, [p.low for p in points], [p.high for p in points], color=colour, alpha=0.12
            )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "25" else "")
    axes.set_ylim(LOWEST_AGREEMENT, 100.3)
    axes.set_xlabel("kB a picture, everything counted (log scale)")
    axes.set_ylabel("same answer as the unsplit model, %")
    axes.set_title(title, fontsize=10.5)
    axes.grid(which="both", alpha=0.22)
    axes.legend(loc="lower right", fontsize=8.5)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)
