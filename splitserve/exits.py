"""Easy inputs answered early: the exit of a cut, and which of its answers are taken.

An exit is a small classifier on a cut's features. Its confidence, the largest class probability,
is calibrated to be the chance that its best class is the whole model's. An answer is taken when
the confidence reaches a threshold, which follows a budget of uploads.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from splitserve.artifact import Artifact, Exit, ExitFloor, Manifest
from splitserve.errors import ArtifactError, UsageError
from splitserve.runtime import Graph, RuntimeOptions
from splitserve.tensors import Tensors

AGREEMENT = 98.0  # percent of early answers that must be the whole model's, unless told otherwise
GAIN = 0.04
DEBT = 20  # uploads
LEAST_SPREAD = 0.5
NEAREST_ONE = 1 - 2.0**-25  # half a float32 below one: confidences that round to one are alike
LEAST = 1e-9


class Judged(NamedTuple):
    """What an exit says of one input.

    Args:
        outputs: the model's output by name: class probabilities, (1, classes), float32.
        confidence: the largest of them; NaN where the features were not finite.
        is_early: whether it is the answer.
    """

    outputs: Tensors
    confidence: float
    is_early: bool


class ExitHead:
    """The loaded exit of one cut.

    Args:
        artifact: the folder.
        position: of the cut.
        options: how to run.

    Raises:
        UsageError: the cut has no exit.
        IntegrityError: its file differs from its hash.
        ArtifactError: it takes or gives something else than the manifest says.
        RuntimeFailureError: ONNX Runtime refuses it.
    """

    def __init__(self, artifact: Artifact, position: int, options: RuntimeOptions) -> None:
        manifest = artifact.manifest
        self.cut = manifest.positions[position]
        self.facts = exit_at(manifest, position, str(artifact.root))
        self._graph = Graph(artifact.read_file(self.facts.graph), options)
        self._output = manifest.outputs[0].name
        _check(self._graph, manifest, position)

    def run(self, features: Tensors) -> tuple[Tensors, float]:
        """Return the model's output as the exit sees it, and the confidence.

        Args:
            features: the cut's egress tensors, by name.
        """
        shares = self._graph.run(features)[self._graph.outputs[0]]
        return {self._output: shares}, float(shares.max())


def exit_at(manifest: Manifest, position: int, where: str) -> Exit:
    """Find the exit of a cut.

    Raises:
        UsageError: there is none; the message names the fix.
    """
    found = manifest.cuts[position - 1].exit if 1 <= position <= len(manifest.cuts) else None
    if found is None:
        name = manifest.positions[position]
        known = ", ".join(cut.name for cut in manifest.cuts if cut.exit) or "none"
        fix = f"splitserve calibrate {where} --images DIR --exits CUT"
        raise UsageError(f"{name} has no exit (there are: {known}); make one with: {fix}")
    return found


def _check(graph: Graph, manifest: Manifest, position: int) -> None:
    """An exit reads egress tensors of its cut and gives one row of class probabilities."""
    taken, given = graph.signature
    offered = {spec.name for spec in manifest.egress(position)}
    wanted = manifest.outputs[0].shape
    is_row = len(given) == 1 and given[0][1] == "tensor(float)" and len(given[0][2]) == 2
    if len(wanted) != 2 or not is_row or given[0][2][1] != wanted[1]:
        raise ArtifactError(
            f"the exit at {manifest.positions[position]} gives {given}, and the model's answer is"
            f" {list(wanted)}"
        )
    if not {facts[0] for facts in taken} <= offered:
        raise ArtifactError(
            f"the exit at {manifest.positions[position]} takes {taken}, and there are"
            f" {', '.join(sorted(offered))}"
        )


def log_odds(confidence: float) -> float:
    """Log odds of a confidence, finite for 0 and for 1."""
    share = min(max(confidence, LEAST), NEAREST_ONE)
    return math.log(share) - math.log1p(-share)


def find_floor(facts: Exit, agreement: float) -> ExitFloor | None:
    """The lowest confidence that kept an agreement, None where none did.

    Args:
        facts: of the exit.
        agreement: percent of early answers that must be the whole model's; 0 asks for nothing.
    """
    if agreement <= 0:
        return ExitFloor(agreement=1e-9, threshold=0, upload=0)
    good = [floor for floor in facts.floors if floor.agreement >= agreement]
    return min(good, key=lambda floor: floor.agreement, default=None)


def require_floor(facts: Exit, agreement: float, cut: str) -> ExitFloor:
    """Find the floor, or say what there is.

    Raises:
        UsageError: no confidence kept this agreement.
    """
    floor = find_floor(facts, agreement)
    if floor is None:
        known = ", ".join(f"{one.agreement:g}" for one in facts.floors) or "none"
        raise UsageError(
            f"the exit at {cut} keeps {agreement:g} % agreement at no confidence (it keeps:"
            f" {known}); lower --exit-agreement, or calibrate it on more inputs"
        )
    return floor


@dataclass(slots=True)
class ExitCounts:
    """What a gate has decided."""

    inputs: int = 0
    early: int = 0

    @property
    def upload(self) -> float:
        """Percent of the inputs that were to go on to the cloud."""
        return 100 * (1 - self.early / self.inputs) if self.inputs else 0.0


class UploadBudget:
    """Decides input by input who answers, so that a wanted share of the stream is uploaded.

    The threshold begins where the calibration says. Then it moves after every input, on the scale
    of log odds: down by step x (1 - share) after an upload, up by step x share after an early
    answer. That is stochastic approximation of the quantile (Robbins and Monro, 1951), with a
    constant step, so that it follows a stream that changes. The moves add up to
    step x (n x share - uploads), hence whatever the stream, after n inputs

        |uploads / n - share|  <=  |threshold now - threshold at first| / (step x n)

    (Gibbs and Candes, Adaptive conformal inference, NeurIPS 2021, proposition 4.1; Angelopoulos,
    Candes and Tibshirani, Conformal PID control, NeurIPS 2023). `step` is 4 % of the distance
    between the thresholds of the calibration's outermost shares.

    No input below the floor is answered early: then more is uploaded than the budget says. Of
    what was too much, 20 uploads at most are made good later: so far the moving threshold may go
    below the floor, without effect, or its swings would miss a budget near the floor.

    Args:
        facts: of the exit.
        budget: percent of the inputs to upload; 100 answers none early.
        floor: least confidence that may answer.
    """

    def __init__(self, facts: Exit, budget: float, floor: float) -> None:
        rising = facts.rates[::-1]
        levels = [log_odds(rate.threshold) for rate in rising]
        self._share = budget / 100
        self._floor = log_odds(floor)
        self._step = GAIN * max(levels[-1] - levels[0], LEAST_SPREAD)
        start = float(np.interp(budget, [rate.upload for rate in rising], levels))
        self._lowest = self._floor - DEBT * self._step
        self._level = max(start, self._floor) if budget > 0 else self._lowest
        self.counts = ExitCounts()

    @property
    def threshold(self) -> float:
        """Least confidence that answers the next input early."""
        return 1 / (1 + math.exp(-max(self._level, self._floor)))

    def takes(self, confidence: float) -> bool:
        """Whether an input is answered early; the threshold moves on."""
        self.counts.inputs += 1
        if not math.isfinite(confidence):
            return False
        is_early = self._share < 1 and log_odds(confidence) >= max(self._level, self._floor)
        self.counts.early += is_early
        moved = self._level - self._step * ((not is_early) - self._share)
        self._level = max(moved, self._lowest)
        return is_early


class Gate:
    """An exit and its budget: what the agent asks behind the head.

    Args:
        head: the exit.
        budget: percent of the inputs to upload.
        agreement: percent of early answers that must be the whole model's.

    Raises:
        UsageError: the exit keeps this agreement at no confidence.
    """

    def __init__(self, head: ExitHead, budget: float, agreement: float = AGREEMENT) -> None:
        floor = require_floor(head.facts, agreement, head.cut)
        self.head = head
        self.wanted = budget
        self.budget = UploadBudget(head.facts, budget, floor.threshold)

    def judge(self, features: Tensors) -> Judged:
        """Run the exit on a cut's egress tensors and decide."""
        outputs, confidence = self.head.run(features)
        return Judged(outputs, confidence, self.budget.takes(confidence))

    def summary(self) -> dict[str, str | float]:
        """What was decided so far, for a log line; shares in percent."""
        counts = self.budget.counts
        return {
            "exit": self.head.cut,
            "inputs": counts.inputs,
            "early": counts.early,
            "upload": round(counts.upload, 2),
            "upload_budget": self.wanted,
            "confidence_from": round(self.budget.threshold, 6),
        }


def positions_with_exit(manifest: Manifest, positions: Iterable[int]) -> list[int]:
    """Those of some positions that have an exit, in order, each once."""
    cuts = manifest.cuts
    return sorted({p for p in positions if 1 <= p <= len(cuts) and cuts[p - 1].exit})
