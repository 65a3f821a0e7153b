"""Heads and tails of cuts that were not measured: interpolated over multiply-adds.

Source: the project's research notes, latency prediction (measure a few cuts, isotonic in between);
pool adjacent violators after Ayer et al., Annals of Mathematical Statistics 26 (1955), 641-647.
"""

from collections.abc import Sequence

import numpy as np

from splitserve.profile.document import Prediction

LEFT_OUT_MIN = 2  # measured cuts; with one there is nothing but the ends to tell it from


def interpolate(
    shares: Sequence[float], seconds: Sequence[float], wanted: Sequence[float]
) -> list[float]:
    """Fit the nearest line that never falls, and read it between its points.

    Args:
        shares: share of multiply-adds of each measured head, 0 to 1, in any order.
        seconds: time of each.
        wanted: shares to predict.
    """
    known = np.unique(np.asarray(shares, dtype=float))
    means = [
        float(np.mean([s for at, s in zip(shares, seconds, strict=True) if at == share]))
        for share in known
    ]
    weights = [sum(at == share for at in shares) for share in known]
    return [float(value) for value in np.interp(wanted, known, isotonic(means, weights))]


def isotonic(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The nearest sequence that never falls, by weighted squares: pool adjacent violators."""
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values, weights, strict=True):
        block = (value, float(weight), 1)
        while blocks and blocks[-1][0] > block[0]:
            mean, before, length = blocks.pop()
            total = before + block[1]
            block = ((mean * before + block[0] * block[1]) / total, total, length + block[2])
        blocks.append(block)
    return [mean for mean, _, length in blocks for _ in range(length)]


def predict_heads(shares: Sequence[float], seconds: Sequence[float | None]) -> list[float]:
    """Fill in what was not measured (None) of times that grow with the share."""
    known = [i for i, value in enumerate(seconds) if value is not None]
    measured = [value for value in seconds if value is not None]
    filled = interpolate([shares[i] for i in known], measured, shares)
    return [guess if value is None else value for value, guess in zip(seconds, filled, strict=True)]


def predict_tails(shares: Sequence[float], seconds: Sequence[float | None]) -> list[float]:
    """Fill in what was not measured (None) of times that shrink as the head's share grows."""
    return predict_heads([1 - share for share in shares], seconds)


def leave_one_out(
    shares: Sequence[float],
    heads: Sequence[float | None],
    tails: Sequence[float | None],
) -> Prediction | None:
    """Predict each measured cut from the other measured positions.

    Args:
        shares: of every position, the input and the output included.
        heads: seconds, None where not measured.
        tails: likewise.

    Returns:
        Relative errors; None with fewer than two measured cuts.
    """
    inner = [i for i in range(1, len(shares) - 1) if heads[i] is not None]
    if len(inner) < LEFT_OUT_MIN:
        return None
    errors: tuple[list[float], list[float]] = ([], [])
    for left_out in inner:
        for into, times, predict in (
            (errors[0], heads, predict_heads), (errors[1], tails, predict_tails),
        ):  # fmt: skip
            truth = times[left_out] or 0.0
            rest = [None if i == left_out else value for i, value in enumerate(times)]
            into.append(abs(predict(shares, rest)[left_out] / max(truth, 1e-9) - 1))
    return Prediction(
        cuts=len(inner),
        head_median=float(np.median(errors[0])),
        head_worst=max(errors[0]),
        tail_median=float(np.median(errors[1])),
        tail_worst=max(errors[1]),
    )
