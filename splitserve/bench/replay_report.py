"""A replay as tables."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from splitserve.bench.replay_figures import ADAPTIVE


def print_replay(result: Mapping[str, Any], console: Console) -> None:
    """Print arms, steps and targets."""
    console.print(_arms(result))
    console.print(_segments(result))
    console.print(_steps(result))
    knowing, ideal, agent = result["clairvoyant"], result["ideal"], result["agent"]
    lines = [
        f"best static plan: {result['best_static']}; adaptive takes"
        f" {_interval(result['to_best_static'])} of its total",
        f"clairvoyant ({', '.join(knowing['plans'])}) {knowing['total_s']:.1f} s; adaptive takes"
        f" {_interval(result['to_clairvoyant'])} of that",
        f"ideal ({', '.join(ideal['plans'])}, each at its median) {ideal['total_s']:.1f} s;"
        f" adaptive takes {ideal['ratio']:.2f} of that",
    ]
    if agent:
        lines.append(
            f"the agent changed its plan {agent['switches']} times, sent {agent['probes']} probes,"
            f" made {agent['trials']} trials; {agent['overdue']} replies were overdue"
        )
    for target in result["targets"]:
        seen = "never" if target["seen"] is None else f"{target['seen']:.3g}"
        verdict = "met" if target["is_met"] else "MISSED"
        lines.append(f"{target['what']}: {seen} (at most {target['limit']:g}): {verdict}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def show_rate(rate_bps: float) -> str:
    """A rate for a person, Mbit/s."""
    return f"{rate_bps / 1e6:g} Mbit/s"


def _interval(ratio: Mapping[str, float]) -> str:
    return f"{ratio['ratio']:.2f} (95 % interval {ratio['low']:.2f} to {ratio['high']:.2f})"


def _arms(result: Mapping[str, Any]) -> Table:
    table = Table(box=SIMPLE_HEAD, title=f"{result['arms'][0]['requests']} requests an arm")
    table.add_column("arm", no_wrap=True)
    for name in ("total s", "p50 ms", "p95 ms", "worst ms", "lost"):
        table.add_column(name, justify="right", no_wrap=True)
    for arm in result["arms"]:
        table.add_row(
            arm["name"],
            f"{arm['total_s']:.1f}",
            *(f"{1e3 * arm[key]:,.0f}" for key in ("p50_s", "p95_s", "worst_s")),
            str(arm["lost"]),
            style="bold" if arm["name"] == ADAPTIVE else "",
        )
    return table


def _segments(result: Mapping[str, Any]) -> Table:
    table = Table(box=SIMPLE_HEAD, title="mean (median) ms in each segment, Mbit/s")
    table.add_column("arm", no_wrap=True)
    for segment in result["segments"]:
        table.add_column(f"{segment['rate_bps'] / 1e6:g}", justify="right", no_wrap=True)
    for arm in result["arms"]:
        table.add_row(
            arm["name"],
            *(
                f"{1e3 * part['mean_s']:,.0f} ({1e3 * part['median_s']:,.0f})"
                for part in arm["by_segment"]
            ),
            style="bold" if arm["name"] == ADAPTIVE else "",
        )
    return table


def _steps(result: Mapping[str, Any]) -> Table:
    table = Table(box=SIMPLE_HEAD, title="after each step of the link")
    table.add_column("at s", justify="right")
    table.add_column("rate", justify="right")
    table.add_column("good plans")
    table.add_column("requests until settled", justify="right")
    for step in result["steps"]:
        table.add_row(
            f"{step['at_s']:g}",
            show_rate(step["rate_bps"]),
            ", ".join(step["good"]),
            "never" if step["requests"] is None else str(step["requests"]),
        )
    return table
