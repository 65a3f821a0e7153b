"""The picture of a decision: latency against bandwidth for every plan, the envelope on top."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from splitserve.plan.decide import Decision, Verdict
from splitserve.plans import Link, PlanOption, latency_s

Doubles = npt.NDArray[np.float64]

POINTS = 240
HEADROOM = 8  # over the slowest of the fastest plans; lines above it are cut off
DECADES = 1.5  # shown on either side of what happens
NAMED = ("#1b6ca8", "#c8553d", "#2f855a", "#d9a441", "#7a4fa3", "#0f7c8a", "#a83262")
PLAIN = "#b4b4b4"


def draw_plans(decision: Decision, title: str, target: Path) -> None:
    """Write the plot as PNG."""
    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    rates = _rates(decision)
    members = list(dict.fromkeys(stretch.option for stretch in decision.envelope))
    colours = {name: NAMED[index % len(NAMED)] for index, name in enumerate(members)}
    for verdict in decision.verdicts:
        if verdict.is_feasible:
            name = verdict.offer.option.name
            times = _times_ms(verdict.offer.option, rates, decision)
            axes.plot(
                rates, times, color=colours.get(name, PLAIN), linewidth=0.9,
                alpha=0.95 if name in colours else 0.55, zorder=2 if name in colours else 1,
            )  # fmt: skip
    options = {verdict.offer.option.name: verdict for verdict in decision.verdicts}
    for stretch in decision.envelope:
        low, high = stretch.from_bps, stretch.to_bps or np.inf
        within = rates[(rates >= low) & (rates <= high)]
        ends = [rate for rate in (low, high) if rates[0] <= rate <= rates[-1]]
        spots = np.unique(np.append(within, ends))
        best = _times_ms(options[stretch.option].offer.option, spots, decision)
        axes.plot(
            spots, best, color=colours[stretch.option], linewidth=3.4, solid_capstyle="round",
            label=_label(options[stretch.option]), zorder=3,
        )  # fmt: skip
    axes.axvline(decision.link.uplink_bps, color="#333333", linestyle="--", linewidth=1)
    if decision.answer:
        spot = latency_s(decision.answer.option, decision.link) * 1e3
        axes.plot([decision.link.uplink_bps], [spot], "o", color="#333333", zorder=4)
    if decision.envelope:
        slowest, fastest = (
            _times_ms(options[decision.envelope[i].option].offer.option, rates, decision)[i]
            for i in (0, -1)
        )
        axes.set_ylim(fastest * 0.7, slowest * HEADROOM)
    _dress(axes, title, decision)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)


def _dress(axes: Axes, title: str, decision: Decision) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda rate, _: f"{rate / 1e6:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "25" else "")
    axes.set_xlabel("uplink, Mbit/s (log scale); dashed: the link planned for")
    axes.set_ylabel("ms from picture to answer (log scale)")
    axes.set_title(title, fontsize=10.5)
    axes.grid(which="both", alpha=0.2)
    if decision.envelope:
        axes.legend(loc="upper right", fontsize=8.5, title="fastest, from slow links to fast")


def _label(verdict: Verdict) -> str:
    option = verdict.offer.option
    sent = f", {option.bytes_up / 1e3:.3g} kB" if not option.is_local else ""
    return f"{option.name}{sent}"


def _rates(decision: Decision) -> Doubles:
    spots = [decision.link.uplink_bps, *(one.from_bps for one in decision.envelope if one.from_bps)]
    low, high = np.log10(min(spots)) - DECADES / 2, np.log10(max(spots)) + DECADES
    return np.asarray(np.logspace(low, high, POINTS))


def _times_ms(option: PlanOption, rates: Doubles, decision: Decision) -> list[float]:
    rtt_s = decision.link.rtt_s
    return [1e3 * latency_s(option, Link(uplink_bps=float(r), rtt_s=rtt_s)) for r in rates]
