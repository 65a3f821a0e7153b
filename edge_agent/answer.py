"""The answer to one input, as data and as one JSON line."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TextIO

import numpy as np

from splitserve.tensors import Array

TOP = 5


@dataclass(frozen=True, slots=True)
class Label:
    """One class with its score; `name` is the index as text where no labels are known."""

    index: int
    name: str
    score: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What came out for one input.

    Args:
        id: name of the input.
        request_id: 32 hex digits, the same in the logs of the service.
        labels: best classes first; empty where the model is no classifier.
        plan: cut and codec that were tried, and where plans are chosen for each request the name in
            the plan file.
        answered_by: "cloud", "edge", or "nobody" where the input could not be read.
        fallback: why the edge answered instead of the cloud.
        error: why nobody answered.
        bytes_up: bytes of the request frames handed to the uplink, though the connection may have
            failed before it carried them; 0 when the cloud was not asked.
        bytes_down: bytes of the answer's frame.
        stages_s: seconds of each stage; `network` is what remains of the round
            trip, `cloud_wait` what an answer that did not come cost.
        total_s: seconds from taking the input up to the answer.
        native_s: seconds of computing on the edge without --slowdown's stretching.
        confidence: of the exit, where one was asked.
    """

    id: str
    request_id: str
    plan: dict[str, str]
    answered_by: str
    total_s: float
    labels: tuple[Label, ...] = ()
    fallback: str | None = None
    error: str | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    stages_s: Mapping[str, float] = field(default_factory=dict)
    native_s: float = 0.0
    confidence: float | None = None


def top_labels(output: Array, names: Sequence[str]) -> tuple[Label, ...]:
    """Rank the classes of a classifier's first output.

    Args:
        output: (1, classes), logits or probabilities; anything else, no numbers among them, gives
            no labels.
        names: class names by index, may be empty.
    """
    if output.ndim != 2 or output.shape[0] != 1 or output.dtype.kind != "f" or not output.size:
        return ()
    if not np.isfinite(output.max()):
        return ()
    scores = _probabilities(output[0].astype(np.float64))
    best = np.argsort(-scores, kind="stable")[:TOP]
    return tuple(
        Label(int(i), names[i] if i < len(names) else str(i), round(float(scores[i]), 6))
        for i in best
    )


def _probabilities(values: Array) -> Array:
    if values.min() >= 0 and abs(float(values.sum()) - 1) < 1e-3:
        return values
    powers = np.exp(values - values.max())
    return np.asarray(powers / powers.sum())


def write_answer(answer: Answer, stream: TextIO) -> None:
    """Write one JSON line and hand it on at once."""
    fields: dict[str, Any] = asdict(answer)
    fields["total_s"] = round(answer.total_s, 6)
    fields["native_s"] = round(answer.native_s, 6)
    if answer.confidence is not None:
        fields["confidence"] = round(answer.confidence, 6)
    fields["stages_s"] = {stage: round(value, 6) for stage, value in answer.stages_s.items()}
    stream.write(json.dumps(fields) + "\n")
    stream.flush()
