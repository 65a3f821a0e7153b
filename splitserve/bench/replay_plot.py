"""The picture of a replay: the link, the latency of every request, and the plan in use."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from splitserve.bench.flow import Asked
from splitserve.bench.replay_figures import ADAPTIVE, Run

COLOURS = ("#c8553d", "#d9a441", "#2f855a", "#7a4fa3", "#0f7c8a", "#a83262", "#8c6d46")
ROOM = 2.2  # for the legend, above the slowest request
LOCAL = "#8a8f98"
WAITED, NO_ANSWER = "finished on the edge after waiting", "no answer"
SPECIAL = {WAITED: "#2b2b2b", NO_ANSWER: "#ff00ff"}
MINE, RIVAL, KNOWING = "#1b6ca8", "#c9a2a2", "#333333"


def draw_replay(runs: Sequence[Run], result: Mapping[str, Any], target: Path) -> None:
    """Write the plot as PNG."""
    figure = Figure(figsize=(10, 6.2), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    link, times, plans = figure.subplots(
        3, 1, sharex=True, gridspec_kw={"height_ratios": (1.1, 3.2, 0.9)}
    )
    by_name = {one.name: one for one in runs}
    _draw_link(link, result["segments"])
    _draw_times(times, by_name, result)
    _draw_plans(plans, by_name, result)
    for axes in (link, times, plans):
        for segment in result["segments"][1:]:
            axes.axvline(segment["start_s"], color="#000000", alpha=0.18, linewidth=0.8, zorder=0)
    plans.set_xlim(0, result["segments"][-1]["end_s"])
    plans.set_xlabel("seconds")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)


def _draw_link(axes: Axes, segments: Sequence[Mapping[str, float]]) -> None:
    edges = [segments[0]["start_s"], *(one["end_s"] for one in segments)]
    rates = [one["rate_bps"] / 1e6 for one in segments]
    axes.stairs(rates, edges, fill=True, color=MINE, alpha=0.16)
    axes.stairs(rates, edges, color=MINE, linewidth=1.6, baseline=None)
    top = max(rates) or 1.0
    for one, rate in zip(segments, rates, strict=True):
        text = f"{rate:g} Mbit/s" if rate else "nothing passes"
        middle = (one["start_s"] + one["end_s"]) / 2
        is_high = rate > 0.6 * top
        axes.annotate(
            text, (middle, rate), xytext=(0, -5 if is_high else 4), textcoords="offset points",
            ha="center", va="top" if is_high else "bottom", fontsize=8.5,
        )  # fmt: skip
    axes.set_ylim(0, 1.12 * top)
    axes.set_ylabel("link, Mbit/s", fontsize=9)
    axes.tick_params(labelsize=8)


def _draw_times(axes: Axes, by_name: Mapping[str, Run], result: Mapping[str, Any]) -> None:
    mine, rival = by_name[ADAPTIVE], by_name[result["best_static"]]
    for run, colour, size, label in (
        (rival, RIVAL, 7, f"best fixed plan: {rival.name}"),
        (mine, MINE, 9, "adaptive agent"),
    ):
        times = [one.due_s for one in run.flow.asked]
        axes.scatter(
            times, [1e3 * value for value in run.latencies_s], s=size, color=colour, linewidths=0,
            label=label, zorder=3 if run is mine else 2,
        )  # fmt: skip
    for number, (segment, name) in enumerate(
        zip(result["segments"], result["ideal"]["plans"], strict=True)
    ):
        arm = next(one for one in result["arms"] if one["name"] == name)
        middle_s = arm["by_segment"][number]["median_s"]
        axes.hlines(
            1e3 * middle_s, segment["start_s"], segment["end_s"], color=KNOWING, linewidth=1.4,
            zorder=4, label="" if number else "median of the fixed plan that is best there",
        )  # fmt: skip
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * ROOM)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "25" else "")
    axes.tick_params(labelsize=8, which="both")
    axes.set_ylabel("ms from due to answered (log scale)", fontsize=9)
    axes.grid(which="both", axis="y", alpha=0.2)
    ratio = result["to_best_static"]["ratio"]
    axes.set_title(
        f"Adaptive: {ratio:.2f} of the best fixed plan's total latency,"
        f" {result['to_clairvoyant']['ratio']:.2f} of the clairvoyant's",
        fontsize=10, loc="left",
    )  # fmt: skip
    axes.legend(loc="upper right", fontsize=8, markerscale=2, framealpha=0.9, ncols=3)


def _draw_plans(axes: Axes, by_name: Mapping[str, Run], result: Mapping[str, Any]) -> None:
    mine = by_name[ADAPTIVE]
    plans = [_shown(one) for one in mine.flow.asked]
    colours = _colours(by_name, plans)
    starts = [one.due_s for one in mine.flow.asked]
    ends = [*starts[1:], result["segments"][-1]["end_s"]]
    for plan, group in groupby(zip(plans, starts, ends, strict=True), key=lambda row: row[0]):
        rows = list(group)
        axes.broken_barh(
            [(rows[0][1], rows[-1][2] - rows[0][1])], (1.1, 0.9), color=colours[plan], linewidth=0
        )
    best = result["ideal"]["plans"]
    for segment, name in zip(result["segments"], best, strict=True):
        length_s = segment["end_s"] - segment["start_s"]
        axes.broken_barh(
            [(segment["start_s"], length_s)], (0, 0.9), color=colours[name], linewidth=0
        )
    axes.set_ylim(0, 2)
    axes.set_yticks([0.45, 1.55], ["best there", "adaptive"], fontsize=8.5)
    axes.tick_params(axis="x", labelsize=8)
    axes.legend(
        handles=[
            Patch(color=colours[name], label=name) for name in dict.fromkeys([*plans, *best])
        ],
        loc="upper center", bbox_to_anchor=(0.5, -0.55), ncols=6, fontsize=8.5, frameon=False,
    )  # fmt: skip


def _colours(by_name: Mapping[str, Run], plans: Sequence[str]) -> dict[str, str]:
    """A colour for every plan; grey for the first, which is the edge alone."""
    local, *others = (name for name in by_name if name != ADAPTIVE)
    names = [name for name in dict.fromkeys([*others, *plans]) if name not in (local, *SPECIAL)]
    shades = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    return {local: LOCAL} | shades | SPECIAL


def _shown(one: Asked) -> str:
    if one.latency_s is None:
        return NO_ANSWER
    return one.plan if one.fallback is None else WAITED
