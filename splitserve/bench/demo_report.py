"""What the demo shows a person: labels, a table, a bar per arm."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

BAR_CELLS = 48
# Letters as well as colours: the bars stay readable in a log and for every eye.
GROUPS = {
    "p": ("decode", "bright_black", ("picture", "normalise")),
    "H": ("head", "green", ("head", "edge_tail")),
    "e": ("encode", "yellow", ("encode",)),
    "~": ("network", "red", ("network",)),
    "q": ("cloud queue, decode", "magenta", ("queue", "cloud_decode")),
    "T": ("cloud tail", "blue", ("tail",)),
}


def print_report(result: Mapping[str, Any], console: Console) -> None:
    """Print the whole report."""
    link = result["link"]
    console.print(
        f"link: {link['rate_mbps']} Mbit/s and {link['delay_ms']} ms each way (self-test:"
        f" {link['measured_rate_mbps']:.2f} Mbit/s, round trip"
        f" {link['measured_round_trip_ms']:.1f} ms); the edge computed {result['slowdown']:.1f}"
        " times slower than this machine",
        highlight=False,
    )
    console.print(_labels(result))
    console.print(_table(result))
    console.print(_bars(result))
    console.print(_verdict(result), highlight=False)


def _labels(result: Mapping[str, Any]) -> Table:
    table = Table(title="What each arm calls the pictures")
    table.add_column("picture", no_wrap=True)
    names = [row["name"] for row in result["arms"]]
    shown = [names[0], result["winner"] if result["winner"] != names[0] else names[-1]]
    for name in shown:
        table.add_column(name)
    table.add_column("arms that are right", justify="right")
    for picture in result["pictures"]:
        cells = [
            f"{picture['labels'][name]['name']} {picture['labels'][name]['score']:.0%}"
            for name in shown
        ]
        right = sum(picture["is_right"].values())
        table.add_row(picture["shows"], *cells, f"{right} of {len(names)}")
    return table


def _table(result: Mapping[str, Any]) -> Table:
    table = Table(title="Every way to run it")
    table.add_column("arm", no_wrap=True)
    for name in ("kB up", "p50 ms", "p95 ms", "agrees with the unsplit model"):
        table.add_column(name, justify="right")
    for row in result["arms"]:
        table.add_row(
            row["name"],
            f"{row['bytes_up'] / 1e3:.1f}" if row["bytes_up"] else "-",
            f"{row['p50_s'] * 1e3:.1f}",
            f"{row['p95_s'] * 1e3:.1f}",
            f"{row['agree']} of {row['requests']}",
            style="bold" if row["name"] == result["winner"] else "",
        )
    return table


def _bars(result: Mapping[str, Any]) -> Text:
    longest = max(sum(row["stages_s"].values()) for row in result["arms"])
    width = max(len(row["name"]) for row in result["arms"]) + 2
    text = Text("Where the time went (medians)\n", style="italic")
    for row in result["arms"]:
        text.append(f"{row['name']:{width}}", style="not italic")
        done, drawn = 0.0, 0
        for letter, (_, colour, stages) in GROUPS.items():
            done += sum(row["stages_s"].get(stage, 0.0) for stage in stages)
            cells = round(BAR_CELLS * done / longest) - drawn
            text.append(letter * cells, style=f"not italic {colour}")
            drawn += cells
        text.append(f" {done * 1e3:.0f} ms\n", style="not italic")
    for letter, (label, colour, _) in GROUPS.items():
        text.append(f"{letter} ", style=f"not italic {colour}")
        text.append(f"{label}  ", style="not italic dim")
    text.append("\n")
    return text


def _verdict(result: Mapping[str, Any]) -> str:
    gain, winner, rival = result["gain"], result["winner"], result["rival"]
    lines = [
        f"Of the arms that agree with the unsplit model on at least {result['agreement_floor']:.0%}"
        f" of the pictures, [bold]{winner}[/] is the fastest on this link"
        + (f", tied with {' and '.join(result['tied'])}." if result["tied"] else ".")
    ]
    if winner != rival:
        other = (
            "the better way to do it all on one side" if result["is_split"] else "the best split"
        )
        lines.append(
            f"It is {gain['ratio']:.2f} times as fast as {rival}, {other} (95 % interval"
            f" {gain['low']:.2f} to {gain['high']:.2f}; {result['arms'][0]['requests']} requests"
            " each, in turn)."
        )
    if not result["is_split"]:
        lines.append("[bold]Do not split here.[/]")
    arms = {row["name"]: row for row in result["arms"]}
    lines += [
        f"{name} is faster but agrees on {arms[name]['agree']} of {arms[name]['requests']} only."
        for name in result["faster_but_below_floor"]
    ]
    return " ".join(lines)
