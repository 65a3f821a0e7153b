"""What an audit shows: one page that needs nothing else, and the short form for the terminal."""

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from splitserve.audit.attacks import Loot
from splitserve.audit.document import Audit, CutAudit, Figure, Share
from splitserve.audit.plots import draw_curves, draw_gallery
from splitserve.audit.policy import LEVELS
from splitserve.audit.subject import Floats
from splitserve.page import draw_svg, write_page


def write_report(
    audit: Audit, pictures: Floats, loot: Sequence[Loot], target: Path, *, is_blurred: bool
) -> None:
    """Write the page; nothing is in it that is neither in the document nor in the gallery."""
    galleries = {}
    for cut in audit.cuts:
        drawn = draw_gallery(cut.cut, loot, pictures, is_blurred=is_blurred)
        if drawn is not None:
            galleries[cut.cut] = draw_svg(drawn)
    write_page(
        target,
        "audit.html.j2",
        {
            "audit": audit,
            "levels": LEVELS,
            "curves": draw_svg(draw_curves(audit)),
            "galleries": galleries,
            "is_blurred": is_blurred,
            "figure": show_figure,
            "share": show_share,
        },
    )


def show_figure(value: Figure, digits: int) -> str:
    """Mean with its interval."""
    return f"{value.mean:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def show_share(value: Share | None) -> str:
    """Share in percent with its interval."""
    if value is None:
        return "not measured"
    return f"{100 * value.value:.1f} % [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def show(audit: Audit, console: Console, page: Path) -> None:
    """Print the short form."""
    table = Table(title=f"{audit.model}: what the receiver can reconstruct", box=SIMPLE_HEAD)
    table.add_column("cut", no_wrap=True)
    table.add_column("strongest attack")
    for name in ("PSNR dB", "SSIM", "identified", "kB", "level"):
        table.add_column(name, justify="right", no_wrap=True)
    for cut in audit.cuts:
        table.add_row(*_cells(cut))
    console.print(table)
    for cut in audit.cuts:
        console.print(
            f"{cut.cut}: level {cut.level}, {LEVELS[cut.level]}: {cut.reasons[0]}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    control = audit.control or "none: nothing can be cleared without one"
    console.print(f"control: {control}", highlight=False, markup=False)
    console.print(f"the whole report: {page}", highlight=False, markup=False, soft_wrap=True)


def _cells(cut: CutAudit) -> list[str]:
    if not cut.attempts:
        return [cut.cut, "none", "", "", "", f"{cut.bytes_up / 1e3:.1f}", str(cut.level)]
    best = max(cut.attempts, key=lambda one: (one.identified.value, one.ssim.mean))
    return [
        cut.cut,
        best.attack,
        f"{best.psnr.mean:.1f}",
        f"{best.ssim.mean:.2f}",
        f"{100 * best.identified.value:.0f} %",
        f"{cut.bytes_up / 1e3:.1f}",
        str(cut.level),
    ]
