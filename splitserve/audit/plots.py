"""The pictures of an audit: leakage along the cuts, what a defence buys, and the gallery."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from scipy import ndimage

from splitserve.audit.attacks import Loot
from splitserve.audit.document import Attempt, Audit, CutAudit
from splitserve.audit.score import score
from splitserve.audit.subject import Floats

COLOURS = ("#1b6ca8", "#c8553d", "#2f855a", "#d9a441", "#7a4fa3", "#4a5568")
MARKERS = "osD^vP*X"
GROUP = 5  # pictures that give most away, middling ones, and those that give least
DECADE = 10  # times between the smallest and the largest: more goes on a logarithmic axis
BLUR = 0.06  # of a picture's side

METRICS: tuple[tuple[str, Callable[[Attempt], float]], ...] = (
    ("PSNR, dB", lambda one: one.psnr.mean),
    ("SSIM", lambda one: one.ssim.mean),
    ("identified, %", lambda one: 100 * one.identified.value),
)
PLACES: tuple[tuple[str, Callable[[CutAudit], float]], ...] = (
    ("convolutions before the cut", lambda cut: cut.convolutions),
    ("work before the cut, %", lambda cut: 100 * cut.macs_share),
    ("kB on the wire", lambda cut: cut.bytes_up / 1e3),
)


def draw_curves(audit: Audit) -> Figure:
    """PSNR, SSIM and identification against depth, work and bytes, one line an attack.

    Of a cut behind several defences the first is shown.
    """
    first = {cut.cut: cut for cut in reversed(audit.cuts)}
    cuts = [cut for cut in audit.cuts if first[cut.cut] is cut and cut.attempts]
    figure = Figure(figsize=(10.5, 8), layout="constrained")
    panels = figure.subplots(len(METRICS), len(PLACES), squeeze=False)
    names = list(dict.fromkeys(one.attack for cut in cuts for one in cut.attempts))
    for row, (title, metric) in zip(panels, METRICS, strict=True):
        for axes, (place, where) in zip(row, PLACES, strict=True):
            for name, colour in zip(names, COLOURS * 3, strict=False):
                _draw_line(axes, [(where(cut), cut) for cut in cuts], (name, colour), metric)
            axes.grid(alpha=0.25)
            axes.set_xlabel(place, fontsize=8.5)
            axes.set_ylabel(title, fontsize=8.5)
            if metric is METRICS[2][1]:
                axes.set_ylim(0, 103)
        sizes = [cut.bytes_up for cut in cuts]
        if max(sizes, default=1) > DECADE * min(sizes, default=1):
            row[2].set_xscale("log")
            row[2].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            row[2].xaxis.set_minor_formatter(NullFormatter())
    guess = audit.baselines
    for row, level in zip(panels, (guess.mean_picture_psnr, guess.mean_picture_ssim), strict=False):
        for axes in row:
            axes.axhline(level, color="#999999", linestyle="--")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8.5)
    return figure


def _draw_line(
    axes: Axes,
    cuts: Sequence[tuple[float, CutAudit]],
    line: tuple[str, str],
    metric: Callable[[Attempt], float],
) -> None:
    name, colour = line
    points = [
        (place, metric(one))
        for place, cut in sorted(cuts, key=lambda pair: pair[0])
        for one in cut.attempts
        if one.attack == name and one.threat.adapts
    ]
    places, values = [place for place, _ in points], [value for _, value in points]
    axes.plot(places, values, "o-", color=colour, label=name, markersize=4)


def draw_trade(audit: Audit) -> Figure | None:
    """What each defence leaves of the answers, against what it leaves to the attackers.

    None without two defences. Filled: the strongest attacker who knows the defence; hollow: the
    strongest who does not.
    """
    names = list(dict.fromkeys(cut.asked for cut in audit.cuts))
    if len(names) < 2:
        return None
    places = list(dict.fromkeys(cut.cut for cut in audit.cuts))
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, (title, metric) in zip(panels, METRICS[1:], strict=True):
        for cut in audit.cuts:
            colour = COLOURS[places.index(cut.cut) % len(COLOURS)]
            marker = MARKERS[names.index(cut.asked) % len(MARKERS)]
            for adapts, face in ((False, "none"), (True, colour)):
                values = [metric(one) for one in cut.attempts if one.threat.adapts is adapts]
                if values:
                    axes.plot(
                        100 * cut.agreement.value,
                        max(values),
                        marker,
                        color=colour,
                        markerfacecolor=face,
                        markersize=7,
                    )
        axes.set_xlabel("answers of the unsplit model, %")
        axes.set_ylabel(title)
        axes.grid(alpha=0.25)
    for place, colour in zip(places, COLOURS * 9, strict=False):
        panels[0].plot([], [], "s", color=colour, label=place)
    for name, marker in zip(names, MARKERS * 9, strict=False):
        panels[0].plot([], [], marker, color="#444444", label=name)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8.5)
    return figure


def draw_gallery(mine: Sequence[Loot], pictures: Floats, *, is_blurred: bool) -> Figure | None:
    """Originals above what each attack on one cut found.

    Five pictures that give most away, five middling ones and five that give least, by the margin
    of identification of the attack that was run on most pictures.
    """
    if not mine:
        return None
    chosen = _choose(mine, pictures)
    rows = [("original", pictures), *((_name(one), one.pictures) for one in mine)]
    size = 0.75 * len(chosen) + 1.6, 0.77 * len(rows) + 0.3
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(rows), len(chosen), squeeze=False)
    for line, (name, shown) in zip(panels, rows, strict=True):
        for axes, index in zip(line, chosen, strict=True):
            axes.set_xticks([])
            axes.set_yticks([])
            if index < len(shown):
                axes.imshow(_shown(shown[index], is_blurred=is_blurred), interpolation="nearest")
            else:
                axes.set_frame_on(False)
        line[0].set_ylabel(
            name.replace(", ", "\n"), fontsize=7, rotation=0, ha="right", va="center"
        )
    for start, title in ((0, "most"), (len(chosen) // 2, "middle"), (len(chosen) - 1, "least")):
        panels[0][start].set_title(title, fontsize=8)
    return figure


def _choose(mine: Sequence[Loot], pictures: Floats) -> list[int]:
    largest = max(mine, key=lambda one: len(one.pictures))
    order = score(largest.pictures, pictures).order
    if len(order) <= 3 * GROUP:
        return [int(index) for index in order]
    middle = (len(order) - GROUP) // 2
    parts = order[:GROUP], order[middle : middle + GROUP], order[-GROUP:]
    return [int(index) for index in np.concatenate(parts)]


def _name(loot: Loot) -> str:
    return loot.attack if loot.threat.adapts else f"{loot.attack}, unaware of the defence"


def _shown(picture: Floats, *, is_blurred: bool) -> Floats:
    sigma = BLUR * picture.shape[-1] if is_blurred else 0
    soft = ndimage.gaussian_filter(picture, (0, sigma, sigma)) if sigma else picture
    return np.clip(soft, 0, 1).transpose(1, 2, 0)
