"""What a comparison shows: a page to look at, and the short form for the terminal."""

from collections.abc import Mapping
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from splitserve.bench.e2e.plots import (
    draw_flows,
    draw_gains,
    draw_latencies,
    draw_predictions,
    draw_stages,
)
from splitserve.bench.e2e.result import Cell, Ratio, Result, Summary
from splitserve.page import draw_svg, write_page

# Aims of the project for its planner; the report marks what misses them, nothing else does.
ERROR_MEDIAN, ERROR_P90 = 0.1, 0.2
NEAR, NEAR_SHARE, EXTREME_REGRET = 0.05, 0.9, 0.1
GAIN, REACHED, FLOW_GAIN = 1.3, 0.8, 1.8
SLOW = 16  # from where on a split is expected to gain as much


def write_report(result: Result, target: Path) -> None:
    """Write the page."""
    write_page(
        target,
        "e2e.html.j2",
        {
            "result": result,
            "cards": cards(result),
            "plots": _plots(result),
            "percent": show_percent,
            "ratio": show_ratio,
        },
    )


def cards(result: Result) -> list[dict[str, object]]:
    """The figures that matter, each with its aim and whether it is met."""
    found = [*_summary_cards(result.summary)]
    for cell in result.cells:
        if cell.is_crossing and cell.gain:
            value, reached = cell.gain.ratio.value, cell.gain.reached
            where = f"{cell.slowdown:g}x slower, {cell.name}"
            is_slow = cell.slowdown >= SLOW
            found.append(
                _card(
                    f"{value:.2f}x, {reached:.0%} of the bound",
                    f"split over the better extreme, {where}",
                    f"{GAIN}x, {REACHED:.0%}" if is_slow else f"{REACHED:.0%}",
                    is_met=reached >= REACHED and (value >= GAIN or not is_slow),
                )
            )
    return found + [
        _card(
            f"{one.gain.value:.2f}x",
            f"pictures a second over the better extreme, {one.slowdown:g}x slower",
            f"{FLOW_GAIN}x",
            is_met=one.gain.value >= FLOW_GAIN,
        )
        for one in result.throughput
    ]


def _summary_cards(summary: Summary) -> list[dict[str, object]]:
    return [
        _card(
            f"{summary.error_median:.1%} / {summary.error_p90:.1%}",
            "predicted against measured, median / p90",
            f"{ERROR_MEDIAN:.0%} / {ERROR_P90:.0%}",
            is_met=summary.error_median <= ERROR_MEDIAN and summary.error_p90 <= ERROR_P90,
        ),
        _card(
            f"{summary.within_regret:.0%}",
            f"of the cells: the plan is within {NEAR:.0%} of the best measured",
            f"{NEAR_SHARE:.0%}",
            is_met=summary.within_regret >= NEAR_SHARE,
        ),
        _card(
            f"{summary.worst_extreme_regret:+.1%}",
            "the plan against the better of edge-only and cloud-only, worst cell",
            f"{EXTREME_REGRET:+.0%}",
            is_met=summary.worst_extreme_regret <= EXTREME_REGRET,
        ),
        _card(
            f"{summary.worst_adaptive_regret:+.1%}",
            "the adaptive agent against the best measured, worst cell",
            f"{EXTREME_REGRET:+.0%}",
            is_met=summary.worst_adaptive_regret <= EXTREME_REGRET,
        ),
    ]


def _card(value: str, label: str, aim: str, *, is_met: bool) -> dict[str, object]:
    return {"value": value, "label": label, "aim": aim, "is_met": is_met}


def _plots(result: Result) -> list[Mapping[str, object]]:
    crossings = [cell for cell in result.cells if cell.is_crossing]
    drawn = [
        (
            "Every arm on every link",
            draw_latencies(result.cells),
            "Mark: measured median; line up to the 95th percentile; black dash: predicted. B* is"
            " the rate at which a split is worth most.",
        ),
        (
            "Predicted and measured",
            draw_predictions(result.cells),
            "Every fixed arm of every cell; bands of 10 % and 20 %.",
        ),
        (
            "What a split gains",
            draw_gains(result.cells),
            "Bar: measured, blue where the split wins; line: 95 % interval; red mark: what these"
            " cuts could reach if codecs cost nothing.",
        ),
    ]
    if crossings:
        stages = "Medians of each stage; the device's stages are stretched."
        drawn.append(("Where the time goes at B*", draw_stages(crossings), stages))
    if result.throughput:
        caption = "Black mark: predicted. Grey: computed from the profile, not measured."
        drawn.append(("Pictures a second", draw_flows(result.throughput), caption))
    return [{"title": t, "svg": draw_svg(figure), "caption": c} for t, figure, c in drawn]


def show_percent(ratio: Ratio) -> str:
    """A difference with its interval, in percent."""
    return f"{100 * ratio.value:+.1f} [{100 * ratio.low:+.1f}, {100 * ratio.high:+.1f}]"


def show_ratio(ratio: Ratio) -> str:
    """A ratio with its interval."""
    return f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def show(result: Result, console: Console, page: Path) -> None:
    """Print the short form."""
    table = Table(title=f"{result.model}: the plan, and what was measured", box=SIMPLE_HEAD)
    table.add_column("slower", justify="right", no_wrap=True)
    for name in ("link", "plan", "best measured"):
        table.add_column(name)
    for name in ("ms", "regret %", "gain", "of it"):
        table.add_column(name, justify="right", no_wrap=True)
    for cell in result.cells:
        table.add_row(*_cells(cell))
    console.print(table)
    console.print(
        "gain: of the best split over the better extreme, and how much of what codecs that cost"
        " nothing would give",
        highlight=False,
    )
    for card in cards(result):
        mark = "[green]met[/]   " if card["is_met"] else "[red]missed[/]"
        console.print(
            f"{mark} {card['value']}: {card['label']} (aim: {card['aim']})", highlight=False
        )
    for note in result.notes:
        console.print(note, style="red", highlight=False)
    console.print(f"the whole report: {page}", highlight=False, soft_wrap=True)


def _cells(cell: Cell) -> list[str]:
    best = next(arm for arm in cell.arms if arm.name == cell.best)
    gain = cell.gain
    return [
        f"{cell.slowdown_measured:.1f}",
        cell.name,
        cell.planner,
        cell.best,
        f"{best.p50_s * 1e3:.1f}",
        f"{100 * cell.regret.value:+.1f}",
        f"{gain.ratio.value:.2f}" if gain else "",
        f"{gain.reached:.0%}" if gain else "",
    ]
