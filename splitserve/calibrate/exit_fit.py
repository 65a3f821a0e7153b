"""Fit an exit without labels: ridge regression to the whole model's scores, in closed form.

Nothing is trained in a loop. The penalty minimises the generalised cross-validation error (Golub,
Heath and Wahba, Technometrics 21, 1979). What the exit promises is measured by cross-fitting:
every input is judged by an exit that was fitted to the other folds.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from splitserve.agreement import estimate
from splitserve.artifact import ExitFloor, ExitRate
from splitserve.calibrate.exit_graph import Classifier

FOLDS = 5
PENALTIES = np.logspace(-6, 3, 37)
DEAD = 1e-6  # of a feature's root mean square; what deviates less is taken for constant
UPLOADS = (95.0, *range(90, 0, -10), 5.0)
AGREEMENTS = (99.9, 99.5, 99.0, 98.0, 97.0, 95.0, 90.0, 80.0)
COLDEST, HOTTEST = 1e-3, 1e2  # of the scores' root mean square

Doubles = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


class Ridge:
    """Ridge regression on standardised features, the intercept not penalised.

    Args:
        features: (inputs, features), float64.
        targets: (inputs, classes), float64.
    """

    def __init__(self, features: Doubles, targets: Doubles) -> None:
        self._mean = features.mean(axis=0)
        deviation = features.std(axis=0)
        size = np.sqrt(np.square(features).mean(axis=0))
        self._is_alive = deviation > DEAD * np.maximum(size, np.finfo(np.float64).tiny)
        self._scale = np.where(self._is_alive, deviation, 1.0)
        self._middle = targets.mean(axis=0)
        self._targets = targets - self._middle
        standard = np.where(self._is_alive, (features - self._mean) / self._scale, 0.0)
        self._left, self._singular, self._right = np.linalg.svd(standard, full_matrices=False)
        self._projected = self._left.T @ self._targets

    def choose_penalty(self) -> float:
        """The penalty, per input, with the least generalised cross-validation error."""
        return float(min(PENALTIES, key=self._error))

    def _error(self, penalty: float) -> float:
        count = len(self._targets)
        kept = self._singular**2 / (self._singular**2 + penalty * count)
        # One more degree of freedom for the intercept.
        left = max(1 - (kept.sum() + 1) / count, 1e-9)
        rest = self._targets - self._left @ (kept[:, None] * self._projected)
        return float(np.square(rest).sum() / left**2)

    def classifier(self, penalty: float, temperature: float = 1.0) -> Classifier:
        """Fit; the standardisation is folded into weight and bias."""
        shrunk = self._singular / (self._singular**2 + penalty * len(self._targets))
        standard = self._right.T @ (shrunk[:, None] * self._projected)
        weight = np.where(self._is_alive[:, None], standard / self._scale[:, None], 0.0)
        return Classifier(weight, self._middle - self._mean @ weight, temperature)


def draw_folds(count: int, seed: int) -> npt.NDArray[np.intp]:
    """Fold of each input, (inputs,): each fold has as many as the next, or one more."""
    return np.random.default_rng(seed).permutation(count) % FOLDS


def cross_fit(features: Doubles, targets: Doubles, seed: int) -> Doubles:
    """Scores of every input, from exits that were fitted to the other folds: (inputs, classes)."""
    scores = np.empty_like(targets)
    folds = draw_folds(len(targets), seed)
    for fold in range(FOLDS):
        is_in = folds == fold
        ridge = Ridge(features[~is_in], targets[~is_in])
        fitted = ridge.classifier(ridge.choose_penalty())
        scores[is_in] = features[is_in] @ fitted.weight + fitted.bias
    return scores


def confidence_of(scores: Doubles, temperature: float) -> Doubles:
    """Largest softmax probability of each row of scores, (inputs,)."""
    return np.asarray(np.exp(_log_confidence(scores, temperature)))


def _log_confidence(scores: Doubles, temperature: float) -> Doubles:
    scaled = (scores - scores.max(axis=1, keepdims=True)) / temperature
    return np.asarray(-np.log(np.exp(scaled).sum(axis=1)))


def fit_temperature(scores: Doubles, hits: Flags) -> float:
    """Temperature at which the confidence is the chance that the best class agrees.

    Least cross-entropy of the event "the exit agrees" under the confidence (temperature scaling,
    Guo et al., On calibration of modern neural networks, ICML 2017, for the event instead of the
    class). The targets are (hits + 1) / (hits + 2) and 1 / (misses + 2) instead of 1 and 0, so
    that exits that never err have a temperature too (Platt 1999).

    Args:
        scores: (inputs, classes), of inputs that the exit was not fitted to.
        hits: (inputs,), whether its best class was the whole model's.
    """
    agreed = int(hits.sum())
    targets = np.where(hits, (agreed + 1) / (agreed + 2), 1 / (len(hits) - agreed + 2))

    def loss(log_temperature: float) -> float:
        log_share = _log_confidence(scores, float(np.exp(log_temperature)))
        log_rest = np.log(np.maximum(-np.expm1(log_share), 1e-300))
        return float(-(targets * log_share + (1 - targets) * log_rest).mean())

    size = float(np.sqrt(np.square(scores).mean())) or 1.0
    grid = np.log(size * np.geomspace(COLDEST, HOTTEST, 101))
    nearest = int(np.argmin([loss(one) for one in grid]))
    low, high = grid[max(0, nearest - 1)], grid[min(100, nearest + 1)]
    found = minimize_scalar(loss, bounds=(low, high), method="bounded")
    return float(np.exp(found.x))


def make_rates(confidence: Doubles, hits: Flags) -> tuple[ExitRate, ...]:
    """Thresholds for shares of uploads, and what early answers are worth there.

    Args:
        confidence: (inputs,), cross-fitted.
        hits: (inputs,).
    """
    order = np.sort(confidence)
    rates = []
    for upload in UPLOADS:
        first = round(len(order) * upload / 100)  # of those that answer early
        if not 0 < first < len(order):
            continue
        threshold = float((order[first - 1] + order[first]) / 2)
        is_early = confidence >= threshold
        rates.append(
            ExitRate(
                upload=upload,
                threshold=min(threshold, 1.0),
                early=estimate(hits[is_early].tolist()),
                answers=estimate((hits | ~is_early).tolist()),
            )
        )
    return tuple(rates)


def make_floors(confidence: Doubles, hits: Flags) -> tuple[ExitFloor, ...]:
    """Lowest confidence that keeps each agreement among all inputs at or above it.

    An agreement counts only where so many inputs are above that one miss would not break it.
    """
    order = np.argsort(-confidence, kind="stable")
    falling, right = confidence[order], np.cumsum(hits[order])
    counts = np.arange(1, len(order) + 1)
    # A threshold cannot part inputs of one confidence.
    is_end = np.append(falling[1:] < falling[:-1], True)
    floors = []
    for agreement in AGREEMENTS:
        is_kept = is_end & (100 * right >= agreement * counts)
        is_kept &= counts * (100 - agreement) >= 100 * (1 - 1e-9)
        (kept,) = np.nonzero(is_kept)
        if kept.size:
            last = int(kept[-1])
            upload = 100 * (1 - counts[last] / len(order))
            threshold = min(float(falling[last]), 1.0)
            floors.append(
                ExitFloor(agreement=agreement, threshold=threshold, upload=round(upload, 3))
            )
    return tuple(floors)


def centred(log_shares: Sequence[Doubles]) -> Doubles:
    """Log probabilities as logits of mean zero, (inputs, classes)."""
    rows = np.concatenate(log_shares)
    return np.asarray(rows - rows.mean(axis=1, keepdims=True))
