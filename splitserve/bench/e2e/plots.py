"""The pictures of a comparison."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from splitserve.bench.e2e.result import Cell, Throughput

COLOURS = {"edge": "#c8553d", "cloud": "#d9a441", "split": "#1b6ca8", "adaptive": "#2f855a"}
MARKS = {"edge": "s", "cloud": "^", "split": "o", "adaptive": "D"}
STAGE_COLOURS = {
    "decode the picture": ("#9aa5b1", ("picture", "normalise")),
    "head": ("#2f855a", ("head", "edge_tail")),
    "encode": ("#d9a441", ("encode",)),
    "link": ("#c8553d", ("network",)),
    "queue, decode": ("#7a4fa3", ("queue", "cloud_decode")),
    "tail": ("#1b6ca8", ("tail",)),
}
WITHIN = (0.1, 0.2)


def draw_latencies(cells: Sequence[Cell]) -> Figure:
    """Per slowdown one panel: every arm on every link, measured and predicted."""
    slowdowns = sorted({cell.slowdown for cell in cells})
    figure = Figure(figsize=(11, 4.2 * len(slowdowns)), layout="constrained")
    panels = figure.subplots(len(slowdowns), 1, squeeze=False)[:, 0]
    for axes, slowdown in zip(panels, slowdowns, strict=True):
        _latency_panel(axes, [cell for cell in cells if cell.slowdown == slowdown])
    return figure


def _latency_panel(axes: Axes, cells: Sequence[Cell]) -> None:
    names = list(dict.fromkeys(arm.name for cell in cells for arm in cell.arms))
    shades = _shades(cells, names)
    for index, name in enumerate(names):
        offset = (index - (len(names) - 1) / 2) * 0.8 / len(names)
        found = [(i, arm) for i, cell in enumerate(cells) for arm in cell.arms if arm.name == name]
        places = [i + offset for i, _ in found]
        rows = [arm for _, arm in found]
        low, high = [r.p50_s * 1e3 for r in rows], [r.p95_s * 1e3 for r in rows]
        axes.vlines(places, low, high, color=shades[name], linewidth=1.5)
        axes.plot(places, low, MARKS[rows[0].role], color=shades[name], markersize=6, label=name)
        said = [
            (p, r.predicted_s * 1e3) for p, r in zip(places, rows, strict=True) if r.predicted_s
        ]
        if said:
            axes.plot(*zip(*said, strict=True), "_", color="black", markersize=13)
    axes.set_xticks(range(len(cells)), [cell.name.replace(", ", "\n") for cell in cells])
    axes.set_yscale("log")
    _label_decades(axes.yaxis)
    for place in range(len(cells) - 1):
        axes.axvline(place + 0.5, color="#e5e9ed", linewidth=1)
    measured = np.median([cell.slowdown_measured for cell in cells])
    axes.set_title(f"device {measured:.1f} times slower", loc="left", fontsize=11)
    axes.set_ylabel("ms from picture to answer")
    axes.grid(axis="y", which="both", alpha=0.25)
    axes.legend(loc="upper right", fontsize=8.5, ncols=2)


def _label_decades(axis: Axis) -> None:
    """1, 2, 5, 10, 20, 50 and so on."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(
        FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    )


def _shades(cells: Sequence[Cell], names: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """A colour a role, lighter for each further arm of the same role."""
    roles = {arm.name: arm.role for cell in cells for arm in cell.arms}
    seen: dict[str, int] = {}
    shades = {}
    for name in names:
        role = roles[name]
        count = seen[role] = seen.get(role, -1) + 1
        base = np.array([int(COLOURS[role][i : i + 2], 16) / 255 for i in (1, 3, 5)])
        shades[name] = tuple(base + (1 - base) * min(0.6, 0.3 * count))
    return shades


def draw_predictions(cells: Sequence[Cell]) -> Figure:
    """Predicted against measured, with the bands of 10 and 20 %."""
    rows = [(arm, arm.predicted_s) for cell in cells for arm in cell.arms if arm.predicted_s]
    measured = np.array([arm.p50_s * 1e3 for arm, _ in rows])
    predicted = np.array([said * 1e3 for _, said in rows])
    figure = Figure(figsize=(5.6, 5.2), layout="constrained")
    axes = figure.subplots()
    ends = np.array([min(measured.min(), predicted.min()) * 0.8, measured.max() * 1.3])
    for share, alpha in zip(WITHIN, (0.25, 0.12), strict=True):
        axes.fill_between(
            ends, ends * (1 - share), ends * (1 + share), color="#1b6ca8", alpha=alpha
        )
    axes.plot(ends, ends, color="#1b6ca8", linewidth=1)
    for role in ("edge", "cloud", "split"):
        chosen = [index for index, (arm, _) in enumerate(rows) if arm.role == role]
        axes.plot(
            measured[chosen], predicted[chosen], MARKS[role], color=COLOURS[role], label=role,
            markersize=5.5, alpha=0.85,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    _label_decades(axes.xaxis)
    _label_decades(axes.yaxis)
    axes.set_xlabel("measured median, ms")
    axes.set_ylabel("predicted, ms")
    axes.legend(loc="upper left")
    axes.grid(alpha=0.2)
    return figure


def draw_gains(cells: Sequence[Cell]) -> Figure:
    """What a split gains over the better extreme on each link, and what it could."""
    found = [(cell, cell.gain) for cell in cells if cell.gain]
    figure = Figure(figsize=(8, 0.42 * len(found) + 1), layout="constrained")
    axes = figure.subplots()
    for place, (_, gain) in enumerate(reversed(found)):
        colour = COLOURS["split"] if gain.ratio.value > 1 else "#9aa5b1"
        axes.barh(place, gain.ratio.value - 1, left=1, color=colour, height=0.6)
        axes.plot([gain.ratio.low, gain.ratio.high], [place, place], color="black", linewidth=1.4)
        axes.plot([gain.bound], [place], "|", color=COLOURS["edge"], markersize=15, mew=2)
    labels = [f"{c.slowdown:g}x slower, {c.name}: {g.split}" for c, g in reversed(found)]
    axes.set_yticks(range(len(found)), labels, fontsize=8.5)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("time of the better extreme over that of the best split")
    axes.grid(axis="x", alpha=0.25)
    return figure


def draw_stages(cells: Sequence[Cell]) -> Figure:
    """Where the time goes at the crossing points."""
    figure = Figure(figsize=(9, 2.4 * len(cells) + 0.6), layout="constrained")
    panels = figure.subplots(len(cells), 1, squeeze=False)[:, 0]
    for axes, cell in zip(panels, cells, strict=True):
        rows = [arm for arm in cell.arms if arm.role != "adaptive"][::-1]
        for place, arm in enumerate(rows):
            left = 0.0
            for label, (colour, stages) in STAGE_COLOURS.items():
                width = 1e3 * sum(arm.stages_s.get(stage, 0.0) for stage in stages)
                axes.barh(place, width, left=left, color=colour, height=0.7, label=label)
                left += width
        axes.set_yticks(range(len(rows)), [arm.name for arm in rows], fontsize=8.5)
        axes.set_title(f"{cell.slowdown:g}x slower, {cell.name}", loc="left", fontsize=10)
        fastest = min(arm.p50_s for arm in rows)
        axes.set_xlim(0, 2.5e3 * fastest)
        axes.set_xlabel("ms (medians of the stages; longer bars are cut off)")
    handles, labels = panels[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=6, fontsize=8.5)
    return figure


def draw_flows(found: Sequence[Throughput]) -> Figure:
    """Answers a second of each arm where the upload takes as long as the edge."""
    figure = Figure(figsize=(8, 1.5 * len(found) + 0.6), layout="constrained")
    panels = figure.subplots(len(found), 1, squeeze=False)[:, 0]
    for axes, one in zip(panels, found, strict=True):
        names = [flow.name for flow in one.flows] + ["edge and upload beside each other"]
        values = [flow.per_s for flow in one.flows] + [one.beside]
        colours = [COLOURS[flow.role] for flow in one.flows] + ["#d7dde3"]
        places = range(len(names))[::-1]
        axes.barh(places, values, color=colours, height=0.6)
        said = [flow.predicted for flow in one.flows]
        axes.plot(said, list(places)[:-1], "|", color="black", markersize=14)
        axes.set_yticks(list(places), names, fontsize=8.5)
        title = f"{one.slowdown:g}x slower, {one.rate_bps / 1e6:.2f} Mbit/s"
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("answers a second")
    return figure
