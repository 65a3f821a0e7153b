"""Figures of what a reconstruction shows, and of what features reveal without any attack.

Pictures are (n, 3, height, width), float, 0 to 1. PSNR and SSIM are taken per picture and never
from a pooled error. Neither says whether a person or a place is recognised: identification does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.stats import beta

Doubles = npt.NDArray[np.float64]

PSNR_LARGEST = 100.0  # dB, of equal pictures
SSIM_SIGMA, SSIM_RADIUS = 1.5, 5
SSIM_K1, SSIM_K2 = 0.01, 0.03
RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


def psnr(seen: Doubles, true: Doubles) -> Doubles:
    """Peak signal-to-noise ratio of each picture, dB, clipped to 0..1 first; at most 100."""
    error = np.square(np.clip(seen, 0, 1) - true).mean(axis=(1, 2, 3))
    return np.asarray(np.minimum(PSNR_LARGEST, -10 * np.log10(np.maximum(error, 1e-300))))


def ssim(seen: Doubles, true: Doubles) -> Doubles:
    """Structural similarity of each picture: Gaussian window of 11, sigma 1.5, mean over RGB.

    Source: Wang, Bovik, Sheikh, Simoncelli, IEEE TIP 2004, with the population covariance; the
    border of half a window is left out, as scikit-image does.
    """
    return np.array(
        [np.mean([_ssim_plane(a, b) for a, b in zip(one, other, strict=True)])
         for one, other in zip(np.clip(seen, 0, 1), true, strict=True)]
    )  # fmt: skip


def _ssim_plane(x: Doubles, y: Doubles) -> float:
    def blur(values: Doubles) -> Doubles:
        wide = ndimage.gaussian_filter(
            values, SSIM_SIGMA, truncate=SSIM_RADIUS / SSIM_SIGMA, mode="reflect"
        )
        return np.asarray(wide)

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = SSIM_K1**2, SSIM_K2**2
    above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    below = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    inner = slice(SSIM_RADIUS, -SSIM_RADIUS)
    return float((above / below)[inner, inner].mean())


def identify(seen: Doubles, gallery: Doubles) -> tuple[npt.NDArray[np.bool_], Doubles]:
    """Whether each reconstruction is nearest to its own original, and by how much.

    Nearness is the cosine of the pictures less their own means.

    Args:
        seen: reconstructions, the i-th of the gallery's i-th picture.
        gallery: the originals.

    Returns:
        Hits, and margins: the cosine with the own original less the best of the others.
    """
    cosines = _unit(seen) @ _unit(gallery).T
    own = np.diag(cosines).copy()
    np.fill_diagonal(cosines, -np.inf)
    margins = own - cosines.max(axis=1)
    return margins > 0, margins


def _unit(pictures: Doubles) -> Doubles:
    flat = pictures.reshape(len(pictures), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12))


def binomial_interval(hits: int, count: int) -> Interval:
    """Share with its exact interval (Clopper and Pearson, Biometrika 1934)."""
    tail = (1 - LEVEL) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, count - hits + 1))
    high = 1.0 if hits == count else float(beta.ppf(1 - tail, hits + 1, count - hits))
    return Interval(hits / count, low, high)


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> Interval:
    """Mean with its bootstrap interval."""
    data = np.asarray(values, np.float64)
    picks = np.random.default_rng(seed).integers(0, len(data), (RESAMPLES, len(data)))
    low, high = np.percentile(data[picks].mean(axis=1), [100 * (1 - LEVEL) / 2, 50 * (1 + LEVEL)])
    return Interval(float(data.mean()), float(low), float(high))


def distances(rows: Doubles) -> Doubles:
    """Euclidean distance of every pair of rows."""
    flat = rows.reshape(len(rows), -1)
    squares = np.square(flat).sum(axis=1)
    gram = squares[:, None] + squares[None] - 2 * flat @ flat.T
    np.fill_diagonal(gram, 0)
    return np.asarray(np.sqrt(np.maximum(gram, 0)))


def distance_correlation(a: Doubles, b: Doubles) -> float:
    """Squared distance correlation, bias-corrected: about 0 for independent samples.

    The plain estimator is near 1 for any two samples of many dimensions.
    Source: Szekely and Rizzo, J. Multivariate Analysis 117, 2013 (U-centred distances).

    Args:
        a: distances of the first sample's pairs, (n, n).
        b: of the second's, in the same order.
    """
    left, right = _u_centred(a), _u_centred(b)
    count = len(a)
    scale = count * (count - 3)
    covariance = float((left * right).sum()) / scale
    variances = float((left * left).sum()) / scale * float((right * right).sum()) / scale
    return covariance / math.sqrt(variances) if variances > 0 else 0.0


def plain_distance_correlation(a: Doubles, b: Doubles) -> float:
    """The usual estimator, for showing that it says nothing here: 1 is not dependence."""

    def centred(d: Doubles) -> Doubles:
        rows = d.mean(axis=1)
        return np.asarray(d - rows[:, None] - rows[None] + d.mean())

    left, right = centred(a), centred(b)
    covariance = float((left * right).mean())
    variances = float((left * left).mean()) * float((right * right).mean())
    return math.sqrt(max(0.0, covariance) / math.sqrt(variances)) if variances > 0 else 0.0


def _u_centred(distance: Doubles) -> Doubles:
    count = len(distance)
    rows = distance.sum(axis=1) / (count - 2)
    centred = distance - rows[:, None] - rows[None] + distance.sum() / ((count - 1) * (count - 2))
    np.fill_diagonal(centred, 0)
    return np.asarray(centred)


def permutation_p(a: Doubles, b: Doubles, shuffles: int, seed: int) -> float:
    """Chance of a correlation at least as large when the pairs are shuffled.

    (k + 1) / (shuffles + 1), so that it is never zero (Phipson and Smyth, 2010).
    """
    generator, seen = np.random.default_rng(seed), distance_correlation(a, b)
    larger = 0
    for _ in range(shuffles):
        order = generator.permutation(len(b))
        larger += distance_correlation(a, b[np.ix_(order, order)]) >= seen
    return (larger + 1) / (shuffles + 1)
