"""What an audit shows: one page that needs nothing else, and the short form for the terminal."""

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from splitserve.artifact import Defence, Noise, Rounding, Subset
from splitserve.audit.attacks import Loot
from splitserve.audit.document import Audit, CutAudit, Figure, Share
from splitserve.audit.plots import draw_curves, draw_gallery, draw_trade
from splitserve.audit.policy import LEVELS
from splitserve.audit.subject import Floats
from splitserve.page import draw_svg, write_page

STANDARDS = (
    (
        "NIST AI 100-2 (2025)",
        "privacy attack, here data reconstruction; goals, knowledge, capabilities",
    ),
    ("OWASP AISVS 1.0", "model inversion of intermediate features, not of training data; C11.2"),
    ("MITRE ATLAS", "AML.T0024.001, invert model, under exfiltration through an inference API"),
    (
        "ISO/IEC 27559:2022",
        "threat modelling, identifiability, adversarial testing (6.2, 7.3, 8.2, 8.3)",
    ),
    ("OWASP LLM top ten", "vectors and embeddings are not safe by being embeddings"),
    ("GDPR art. 35, ICO AI guidance", "privacy attacks belong into an impact assessment"),
    ("EDPB Opinion 28/2024", "about trained models: the likelihood test is borrowed, not claimed"),
)


def write_report(
    audit: Audit, pictures: Floats, loot: Sequence[Loot], target: Path, *, is_blurred: bool
) -> None:
    """Write the page; nothing is in it that is neither in the document nor in the gallery."""
    galleries = {}
    for cut in audit.cuts:
        mine = [one for one in loot if (one.cut, one.defence) == (cut.cut, cut.asked)]
        drawn = draw_gallery(mine, pictures, is_blurred=is_blurred)
        if drawn is not None:
            galleries[cut.cut, cut.asked] = draw_svg(drawn)
    trade = draw_trade(audit)
    write_page(
        target,
        "audit.html.j2",
        {
            "audit": audit,
            "levels": LEVELS,
            "curves": draw_svg(draw_curves(audit)),
            "trade": trade and draw_svg(trade),
            "galleries": galleries,
            "is_blurred": is_blurred,
            "figure": show_figure,
            "share": show_share,
            "defence": show_defence,
            "standards": STANDARDS,
        },
    )


def show_defence(defence: Defence | None) -> str:
    """A defence with its amounts."""
    if isinstance(defence, Noise):
        amounts = ", ".join(f"{one:.3g}" for one in defence.deviations)
        return f"{defence.asked}, Gaussian noise of standard deviation {amounts}"
    if isinstance(defence, Rounding):
        return f"{defence.asked}, steps of {', '.join(f'{one:.3g}' for one in defence.steps)}"
    if isinstance(defence, Subset):
        kept = sum(value is None for one in defence.constants for value in one)
        return f"{defence.asked}, {kept} of {sum(map(len, defence.constants))} channels travel"
    return "nothing may cross" if defence else "no defence"


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
    has_defences = any(cut.defence for cut in audit.cuts)
    table = Table(title=f"{audit.model}: what the receiver can reconstruct", box=SIMPLE_HEAD)
    table.add_column("cut", no_wrap=True)
    if has_defences:
        table.add_column("defence", no_wrap=True)
    table.add_column("strongest attack", min_width=12, overflow="fold")
    for name in ("PSNR dB", "SSIM", "identified", "agree", "kB", "level"):
        table.add_column(name, justify="right", no_wrap=True)
    for cut in audit.cuts:
        first, *rest = _cells(cut)
        table.add_row(first, *([cut.asked] if has_defences else []), *rest)
    console.print(table)
    for cut in audit.cuts:
        where = f"{cut.cut}, {cut.asked}" if has_defences else cut.cut
        console.print(
            f"{where}: level {cut.level}, {LEVELS[cut.level]}: {cut.reasons[0]}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    control = audit.control or "none: nothing can be cleared without one"
    console.print(f"control: {control}", highlight=False, markup=False)
    console.print(f"the whole report: {page}", highlight=False, markup=False, soft_wrap=True)


def _cells(cut: CutAudit) -> list[str]:
    best, agreement = cut.strongest, f"{100 * cut.agreement.value:.0f} %"
    after = [agreement, f"{cut.bytes_up / 1e3:.1f}", str(cut.level)]
    if best is None:
        return [cut.cut, "none", "", "", "", *after]
    return [
        cut.cut,
        best.attack,
        f"{best.psnr.mean:.1f}",
        f"{best.ssim.mean:.2f}",
        f"{100 * best.identified.value:.0f} %",
        *after,
    ]
