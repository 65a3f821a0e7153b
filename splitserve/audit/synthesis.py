"""Pictures that fit a model's batch norms: a second source of pictures that nobody took.

Procedural pictures are moved until the model is sure of a class and the values at every batch norm
have the mean and variance that the norm stored in training. The objective is DeepInversion's (Yin
et al., arXiv 1912.08795) without its student and its hours; the weights and the start are our own
(docs/audit.md). A model whose batch norms were folded into its convolutions keeps no statistics.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional

from splitserve.audit.device import to_array, to_tensor
from splitserve.errors import GraphError

Floats = npt.NDArray[np.float32]
See = Callable[[Tensor, Sequence[str]], Sequence[Tensor]]
Tick = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Norm:
    """What one batch norm knows of the training pictures.

    Args:
        name: of the tensor at its input.
        mean: of every channel.
        variance: of every channel.
    """

    name: str
    mean: Tensor
    variance: Tensor


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole model, as its attacker has it.

    Args:
        see: tensors by name from pictures, (n, 3, height, width), 0 to 1; differentiable.
        logits: name of the scores, (n, classes).
        norms: its batch norms.
    """

    see: See
    logits: str
    norms: Sequence[Norm]


@dataclass(frozen=True, slots=True)
class Synthesis:
    """How to move the pictures.

    Args:
        steps: of Adam.
        batch: pictures that share one mean and variance.
        rate: of learning; a picture spans 0 to 1.
        matched: weight of the distance from the norms.
        variation: weight of the mean difference of neighbours.
        jitter: pixels of random shift at every step.
        seed: of classes and shifts.
    """

    steps: int = 60
    batch: int = 64
    rate: float = 0.02
    matched: float = 0.1
    variation: float = 2.0
    jitter: int = 2
    seed: int = 0


def find_norms(parts: Sequence[onnx.ModelProto]) -> list[Norm]:
    """Batch norms of a model whose parts follow one another; none where they are folded."""
    stored = {one.name: one for part in parts for one in part.graph.initializer}
    return [
        Norm(node.input[0], _tensor(stored[node.input[3]]), _tensor(stored[node.input[4]]))
        for part in parts
        for node in part.graph.node
        if node.op_type == "BatchNormalization" and {*node.input[3:5]} <= stored.keys()
    ]


def _tensor(stored: onnx.TensorProto) -> Tensor:
    return to_tensor(numpy_helper.to_array(stored).astype(np.float32))


def norm_distance(norms: Sequence[Norm], seen: Sequence[Tensor]) -> Tensor:
    """Sum over the norms of how far mean and variance of a batch are from the stored ones."""
    total = torch.zeros(())
    for norm, values in zip(norms, seen, strict=True):
        rows = values.transpose(0, 1).flatten(1)
        total = total + torch.linalg.vector_norm(rows.mean(1) - norm.mean)
        total = total + torch.linalg.vector_norm(rows.var(1, correction=0) - norm.variance)
    return total


def synthesise(whole: Whole, start: Floats, synthesis: Synthesis, tick: Tick) -> Floats:
    """Move pictures until they fit a model's batch norms and its classes, drawn evenly.

    Args:
        whole: the model.
        start: pictures to move, (n, 3, height, width), 0 to 1; procedural ones.
        synthesis: how.
        tick: called after every step of every batch.

    Returns:
        As many pictures of the same size, 0 to 1.

    Raises:
        GraphError: the model has no batch norm left, so there is nothing to match.
    """
    if not whole.norms:
        raise GraphError(
            "the model has no BatchNormalization node: nothing to match; export it without folding"
            " them into the convolutions, or use procedural pictures alone"
        )
    generator = np.random.default_rng(synthesis.seed)
    with torch.no_grad():
        classes = whole.see(to_tensor(start[:1]), [whole.logits])[0].shape[1]
    targets = to_tensor(generator.permutation(np.arange(len(start)) % classes))
    made = np.empty_like(start)
    for first in range(0, len(start), synthesis.batch):
        rows = slice(first, first + synthesis.batch)
        made[rows] = _move(whole, (start[rows], targets[rows]), synthesis, generator, tick)
    return made


def _move(
    whole: Whole,
    batch: tuple[Floats, Tensor],
    synthesis: Synthesis,
    generator: np.random.Generator,
    tick: Tick,
) -> Floats:
    """Move one batch of pictures to its classes."""
    start, targets = batch
    pictures = to_tensor(start.copy()).requires_grad_()
    wanted = [whole.logits, *(norm.name for norm in whole.norms)]
    optimiser = torch.optim.Adam([pictures], synthesis.rate)
    for _ in range(synthesis.steps):
        reach = synthesis.jitter
        shift = generator.integers(-reach, reach + 1, 2).tolist()
        logits, *seen = whole.see(torch.roll(pictures, shift, (2, 3)), wanted)
        loss = functional.cross_entropy(logits, targets)
        loss = loss + synthesis.matched * norm_distance(whole.norms, seen)
        loss = loss + synthesis.variation * _variation(pictures)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            pictures.clamp_(0, 1)
        tick()
    return to_array(pictures)


def _variation(pictures: Tensor) -> Tensor:
    """Mean absolute difference of neighbours, down and across."""
    return pictures.diff(dim=2).abs().mean() + pictures.diff(dim=3).abs().mean()
