"""How far the answers from decoded features are from those of the unsplit model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from splitserve.artifact import Estimate, Manifest
from splitserve.errors import UsageError
from splitserve.tensors import Array, Tensors, TensorSpec

Kind = Literal["argmax", "error"]
Doubles = npt.NDArray[np.float64]
NORMAL_975 = 1.959964
TOLERANCE = 0.05  # of outputs that are no class scores, where no calibration says another


@dataclass(frozen=True, slots=True)
class Judge:
    """Compares answers for one input.

    Args:
        outputs: names of the model's outputs; the first holds the class scores.
        kind: `argmax` agrees when the best class of every row is the same, `error` when the
            outputs' root mean square error over their root mean square is within `tolerance`.
        tolerance: for `error`.
    """

    outputs: tuple[str, ...]
    kind: Kind
    tolerance: float

    def agrees(self, got: Tensors, wanted: Tensors) -> bool:
        """Whether an answer is as good as the unsplit model's."""
        if self.kind == "argmax":
            name = self.outputs[0]
            return np.array_equal(best_classes(got[name]), best_classes(wanted[name]))
        return self._relative_error(got, wanted) <= self.tolerance

    def divergence(self, got: Tensors, wanted: Tensors) -> float:
        """How much an answer differs, smoothly: Kullback-Leibler in nats, or squared error.

        Kullback-Leibler is the mean over the rows; it is not finite where scores are not.
        """
        if self.kind == "error":
            return self._relative_error(got, wanted) ** 2
        name = self.outputs[0]
        with np.errstate(over="ignore", invalid="ignore"):
            truth, guess = log_shares(wanted[name]), log_shares(got[name])
            return float((np.exp(truth) * (truth - guess)).sum() / len(truth))

    def _relative_error(self, got: Tensors, wanted: Tensors) -> float:
        with np.errstate(over="ignore", invalid="ignore"):
            error = sum(_square(got[name] - wanted[name].astype(float)) for name in self.outputs)
        return math.sqrt(error / max(sum(_square(wanted[name]) for name in self.outputs), 1e-30))


def make_judge(outputs: Sequence[TensorSpec], kind: Kind | None, tolerance: float) -> Judge:
    """Build a judge for a model; without a kind, models with one row of scores get `argmax`.

    Raises:
        UsageError: `argmax` for a model whose first output is no row of scores.
    """
    shape = outputs[0].shape
    is_row = len(shape) == 2 and isinstance(shape[1], int) and shape[1] > 1
    if kind == "argmax" and not is_row:
        raise UsageError(
            f"--agreement argmax needs class scores, and {outputs[0].name} is {outputs[0].sizes};"
            " use --agreement error"
        )
    names = tuple(spec.name for spec in outputs)
    return Judge(names, kind or ("argmax" if is_row else "error"), tolerance)


def judge_of(manifest: Manifest, position: int = 0) -> Judge:
    """Judge answers as the calibration of a cut did, else as that of another, else by the outputs.

    Raises:
        UsageError: a calibration by class scores of a model without them.
    """
    own = manifest.cuts[position - 1 : position] if position else ()
    for cut in (*own, *manifest.cuts):
        if cut.calibration:
            kind, tolerance = cut.calibration.agreement_is, cut.calibration.tolerance
            return make_judge(manifest.outputs, kind, tolerance or TOLERANCE)
    return make_judge(manifest.outputs, None, TOLERANCE)


def best_class(scores: Array) -> int:
    """Index of the best class of one answer."""
    return int(scores.reshape(-1).argmax())


def best_classes(scores: Array) -> npt.NDArray[np.intp]:
    """Index of the best class of every row of scores."""
    return np.asarray(scores.argmax(axis=-1))


def estimate(hits: Sequence[bool]) -> Estimate:
    """Share of hits in percent with its 95 % Wilson interval."""
    count, share = len(hits), float(np.mean(hits))
    spread = NORMAL_975**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = NORMAL_975 * math.sqrt(share * (1 - share) / count + spread / count / 4) / (1 + spread)
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Estimate(value=round(100 * share, 3), low=round(100 * low, 3), high=round(100 * high, 3))


def log_shares(scores: Array) -> Doubles:
    """Logarithms of class probabilities of each row, from logits or from probabilities."""
    rows = scores.reshape(-1, scores.shape[-1]).astype(np.float64)
    sums = rows.sum(axis=1, keepdims=True)
    is_share = (rows.min(axis=1, keepdims=True) >= 0) & (np.abs(sums - 1) < 1e-3)
    shifted = rows - rows.max(axis=1, keepdims=True)
    of_logits = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.where(is_share, np.log(np.maximum(rows, 1e-12)), of_logits)


def _square(values: Array) -> float:
    return float(np.square(values, dtype=np.float64).sum())
