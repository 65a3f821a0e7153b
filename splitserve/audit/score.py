"""From reconstructions to figures."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from splitserve.audit.document import Figure, Share
from splitserve.audit.metrics import (
    binomial_interval,
    bootstrap_mean,
    identify,
    psnr,
    ssim,
)
from splitserve.audit.subject import Floats

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scores:
    """Figures of every picture.

    Args:
        error: mean squared error.
        psnr: dB.
        ssim: structural similarity.
        margins: of identification; above 0 the picture is identified.
    """

    error: Doubles
    psnr: Doubles
    ssim: Doubles
    margins: Doubles

    @property
    def order(self) -> npt.NDArray[np.intp]:
        """Pictures, what gives most away first."""
        return np.argsort(-self.margins, kind="stable")


def score(seen: Floats, gallery: Floats) -> Scores:
    """Compare reconstructions with the gallery's first pictures, in their order.

    Args:
        seen: (n, 3, height, width).
        gallery: (at least n, 3, height, width): the originals, then others to be mistaken for.
    """
    count = len(seen)
    true, found = gallery[:count].astype(np.float64), seen.astype(np.float64)
    padded = np.concatenate([seen, np.zeros_like(gallery[count:])]).astype(np.float64)
    _, margins = identify(padded, gallery.astype(np.float64))
    error = np.square(np.clip(found, 0, 1) - true).mean(axis=(1, 2, 3))
    return Scores(error, psnr(found, true), ssim(found, true), margins[:count])


def figure(values: Doubles, seed: int, worst: Literal["most", "least"] = "most") -> Figure:
    """Mean, interval and spread.

    Args:
        values: of every picture.
        seed: of the bootstrap.
        worst: which end gives most away.
    """
    mean = bootstrap_mean(values.tolist(), seed)
    p5, median, p95 = (float(v) for v in np.percentile(values, [5, 50, 95]))
    return Figure(
        mean=mean.value,
        low=mean.low,
        high=mean.high,
        p5=p5,
        median=median,
        p95=p95,
        worst=float(values.max() if worst == "most" else values.min()),
    )


def share(hits: npt.NDArray[np.bool_]) -> Share:
    """Share with its exact interval."""
    found = binomial_interval(int(hits.sum()), len(hits))
    return Share(value=found.value, low=found.low, high=found.high)
