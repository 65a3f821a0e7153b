"""Give a cut an exit: fit it, measure by cross-fitting what it is worth, and store it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from splitserve.agreement import Judge, best_class, log_shares
from splitserve.artifact import Exit, Manifest, StoredFile
from splitserve.calibrate.exit_fit import (
    FOLDS,
    Ridge,
    centred,
    confidence_of,
    cross_fit,
    fit_temperature,
    make_floors,
    make_rates,
)
from splitserve.calibrate.exit_graph import FEATURES, build_exit, build_features
from splitserve.errors import UsageError
from splitserve.runtime import Graph, RuntimeOptions
from splitserve.tensors import Tensors, TensorSpec

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Origin:
    """Which inputs an exit was fitted to, and how they were drawn."""

    inputs_sha256: str
    seed: int


def require_classifier(manifest: Manifest, judge: Judge) -> None:
    """Refuse models whose answer is no class.

    Raises:
        UsageError: it names why.
    """
    outputs = manifest.outputs
    why = None
    if len(outputs) != 1:
        names = ", ".join(spec.name for spec in outputs)
        why = f"the model has {len(outputs)} outputs ({names})"
    elif judge.kind != "argmax":
        why = f"its answer is judged by {judge.kind}"
    elif not outputs[0].dtype.startswith("float"):
        why = f"{outputs[0].name} is {outputs[0].dtype}"
    elif len(outputs[0].shape) != 2 or not isinstance(outputs[0].shape[1], int):
        why = f"{outputs[0].name} is {outputs[0].sizes}"
    if why:
        raise UsageError(
            "--exits needs a classifier, one output (1, classes) judged by its best class, and"
            f" {why}"
        )


class ExitFitter:
    """Collects features at a cut, one input at a time, then fits the exit.

    Args:
        position: of the cut.
        egress: what crosses there.
        channels_last: of pictures.

    Raises:
        UsageError: no tensor of the cut has features of a known number.
    """

    def __init__(self, position: int, egress: Sequence[TensorSpec], *, channels_last: bool) -> None:
        self._position, self._egress, self._channels_last = position, egress, channels_last
        content = build_features(egress, channels_last=channels_last)
        self._pooling = Graph(content, RuntimeOptions(threads=1))
        self._features: list[Doubles] = []

    def see(self, tensors: Tensors) -> None:
        """Take one input's egress tensors."""
        self._features.append(self._pooling.run(tensors)[FEATURES].astype(np.float64))

    def fit(self, wanted: Sequence[Tensors], output: str, origin: Origin) -> tuple[bytes, Exit]:
        """Fit the exit to the whole model's answers.

        Args:
            wanted: outputs of the whole model for the inputs seen, in their order.
            output: name of the one that counts.
            origin: of the inputs.

        Returns:
            The ONNX file and what the manifest says of it.

        Raises:
            UsageError: features or answers that are not finite.
        """
        features = np.concatenate(self._features)
        targets = centred([log_shares(one[output]) for one in wanted])
        if not (np.isfinite(features).all() and np.isfinite(targets).all()):
            names = ", ".join(spec.name for spec in self._egress)
            raise UsageError(f"no exit at {names}: features or answers are not finite")
        classes = np.array([best_class(one[output]) for one in wanted])
        scores = cross_fit(features, targets, origin.seed)
        hits = scores.argmax(axis=1) == classes
        temperature = fit_temperature(scores, hits)
        confidence = confidence_of(scores, temperature)
        ridge = Ridge(features, targets)
        classifier = ridge.classifier(ridge.choose_penalty(), temperature)
        content = build_exit(self._egress, classifier, channels_last=self._channels_last)
        facts = Exit(
            graph=self._stored(content),
            rates=make_rates(confidence, hits),
            floors=make_floors(confidence, hits),
            temperature=temperature,
            fitted_on=len(features),
            folds=FOLDS,
            inputs_sha256=origin.inputs_sha256,
            seed=origin.seed,
        )
        return content, facts

    def _stored(self, content: bytes) -> StoredFile:
        sha256 = hashlib.sha256(content).hexdigest()
        # The name tells the content, as that of codec tables does.
        name = f"e{self._position}-{sha256[:8]}.onnx"
        return StoredFile(file=name, sha256=sha256, bytes=len(content))
