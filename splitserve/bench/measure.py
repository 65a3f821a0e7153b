"""Turning samples into figures: median, p95, and intervals on ratios."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

RESAMPLES = 2000
LOCAL = ("picture", "normalise", "head", "encode", "edge_tail")  # an answer's stages on the device


def in_turn(count: int, turn: int) -> list[int]:
    """Every arm once, beginning with another one each turn."""
    return [(turn + index) % count for index in range(count)]


def slowdown_of(answer: Mapping[str, Any]) -> float:
    """How many times slower the edge computed than this machine did, as measured."""
    stretched = sum(answer["stages_s"].get(stage, 0.0) for stage in LOCAL)
    return float(stretched / max(1e-9, answer["native_s"]))


def median(values: Sequence[float]) -> float:
    """Median."""
    return float(np.median(values))


def p95(values: Sequence[float]) -> float:
    """95th percentile, by linear interpolation."""
    return float(np.percentile(values, 95))


def ratio_interval(
    upper: Sequence[float], lower: Sequence[float], seed: int = 0
) -> tuple[float, float, float]:
    """Ratio of two medians over the same inputs, with a bootstrap 95 % interval.

    Args:
        upper: samples in the numerator, by input.
        lower: samples in the denominator, in the same order of inputs; they are resampled in pairs.
        seed: of the resampling.

    Returns:
        The ratio, the lower and the upper end of its interval.
    """
    above, below = np.asarray(upper), np.asarray(lower)
    picks = np.random.default_rng(seed).integers(0, len(above), (RESAMPLES, len(above)))
    ratios = np.median(above[picks], axis=1) / np.median(below[picks], axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(np.median(above) / np.median(below)), float(low), float(high)


def total_ratio_interval(
    upper: Sequence[float], lower: Sequence[float], block: int, seed: int = 0
) -> tuple[float, float, float]:
    """Ratio of two sums over the same inputs, with a bootstrap 95 % interval.

    Neighbours wait for one another, so whole blocks are drawn (circular block bootstrap; Politis
    and Romano 1992).

    Args:
        upper: samples in the numerator, in time.
        lower: samples in the denominator, in the same order of inputs; they are resampled in pairs.
        block: neighbours that are drawn together.
        seed: of the resampling.

    Returns:
        The ratio, the lower and the upper end of its interval.
    """
    above, below = np.asarray(upper), np.asarray(lower)
    count = len(above)
    draws = -(-count // block)
    starts = np.random.default_rng(seed).integers(0, count, (RESAMPLES, draws))
    picks = ((starts[:, :, None] + np.arange(block)) % count).reshape(RESAMPLES, -1)[:, :count]
    ratios = above[picks].sum(axis=1) / below[picks].sum(axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(above.sum() / below.sum()), float(low), float(high)
