"""The pictures of an audit: leakage along the cuts, and the gallery."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from scipy import ndimage

from splitserve.audit.attacks import Loot
from splitserve.audit.document import Audit
from splitserve.audit.score import score
from splitserve.audit.subject import Floats

COLOURS = ("#1b6ca8", "#c8553d", "#2f855a", "#d9a441", "#7a4fa3")
SHOWN = 10
BLUR = 0.06  # of a picture's side


def draw_curves(audit: Audit) -> Figure:
    """PSNR, SSIM and identification against depth, one line an attack."""
    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    panels = figure.subplots(1, 3)
    names = list(dict.fromkeys(one.attack for cut in audit.cuts for one in cut.attempts))
    shares = [100 * cut.macs_share for cut in audit.cuts]
    for name, colour in zip(names, COLOURS * 3, strict=False):
        rows = [
            (share, one)
            for share, cut in zip(shares, audit.cuts, strict=True)
            for one in cut.attempts
            if one.attack == name
        ]
        where = [share for share, _ in rows]
        figures = (
            [one.psnr.mean for _, one in rows],
            [one.ssim.mean for _, one in rows],
            [100 * one.identified.value for _, one in rows],
        )
        for axes, values in zip(panels, figures, strict=True):
            axes.plot(where, values, "o-", color=colour, label=name, markersize=4)
    titles = ("PSNR, dB", "SSIM", "identified, %")
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("work before the cut, %")
        axes.set_xlim(0, 100)
        axes.grid(alpha=0.25)
    panels[0].axhline(audit.baselines.mean_picture_psnr, color="#999999", linestyle="--")
    panels[2].set_ylim(0, 103)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8.5)
    return figure


def draw_gallery(
    cut: str, loot: Sequence[Loot], pictures: Floats, *, is_blurred: bool
) -> Figure | None:
    """Originals above what each attack found; from what gives most away to what gives least."""
    mine = [one for one in loot if one.cut == cut]
    if not mine:
        return None
    largest = max(mine, key=lambda one: len(one.pictures))
    order = score(largest.pictures, pictures).order
    most = min(len(one.pictures) for one in mine)
    order = order[order < most]
    chosen = order[
        np.unique(np.linspace(0, len(order) - 1, min(SHOWN, len(order))).round().astype(int))
    ]
    rows = [("original", pictures), *((one.attack, one.pictures) for one in mine)]
    figure = Figure(figsize=(1.0 * len(chosen) + 1.2, 1.02 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), len(chosen), squeeze=False)
    for line, (name, shown) in zip(panels, rows, strict=True):
        for axes, index in zip(line, chosen, strict=True):
            axes.imshow(_shown(shown[index], is_blurred=is_blurred), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
        line[0].set_ylabel(
            name.replace(", ", "\n"), fontsize=7, rotation=0, ha="right", va="center"
        )
    return figure


def _shown(picture: Floats, *, is_blurred: bool) -> Floats:
    sigma = BLUR * picture.shape[-1] if is_blurred else 0
    soft = ndimage.gaussian_filter(picture, (0, sigma, sigma)) if sigma else picture
    return np.clip(soft, 0, 1).transpose(1, 2, 0)
