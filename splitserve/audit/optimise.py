"""White-box optimisation: the picture whose features come nearest to those received.

Adam from grey on the distance of the features plus total variation (regularised maximum likelihood,
He, Zhang and Lee, ACSAC 2019). Two settings decide it, the weight of the variation and the
number of steps; an untuned attack gives a false all-clear. So the weight is tuned on pictures that
are not scored, and the whole sweep is in the report.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from splitserve.audit.subject import Floats, Subject

RATE = 0.05
WEIGHTS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
GREY = 0.5
Tick = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Found:
    """What one run of the attack gave.

    Args:
        pictures: (n, 3, height, width), 0 to 1.
        distance: of their features from those received, over the variance of these; by picture.
    """

    pictures: Floats
    distance: Floats


def total_variation(pictures: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels."""
    down = (pictures[:, :, 1:] - pictures[:, :, :-1]).abs().mean()
    right = (pictures[:, :, :, 1:] - pictures[:, :, :, :-1]).abs().mean()
    return down + right


@dataclass(frozen=True, slots=True)
class Prey:
    """Features that were received.

    Args:
        names: of the tensors.
        received: the same, (n, ...) each.
    """

    names: Sequence[str]
    received: Sequence[Floats]


def optimise(subject: Subject, prey: Prey, weight: float, steps: int, tick: Tick) -> Found:
    """Find pictures for features, all at once; each has its own gradient.

    Args:
        subject: the head.
        prey: features of pictures that are not known.
        weight: of the total variation.
        steps: of Adam, with a rate that falls to nothing along a cosine.
        tick: called after each step.
    """
    wanted = [torch.from_numpy(np.ascontiguousarray(values)) for values in prey.received]
    spread = [float(values.var()) + 1e-12 for values in wanted]
    count = len(wanted[0])
    pictures = torch.full((count, 3, *subject.size), GREY, requires_grad=True)
    optimiser = torch.optim.Adam([pictures], RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        distance = _distance(subject.features(pictures, prey.names), wanted, spread)
        # The sum, not the mean, so that a picture's gradient does not depend on the others.
        loss = distance.sum() + weight * count * total_variation(pictures)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            pictures.clamp_(0, 1)
        tick()
    with torch.no_grad():
        distance = _distance(subject.features(pictures, prey.names), wanted, spread)
    return Found(pictures.detach().numpy(), distance.numpy())


def _distance(found: Sequence[Tensor], wanted: Sequence[Tensor], spread: Sequence[float]) -> Tensor:
    """Mean squared distance of the features over their variance, by picture."""
    parts = [
        (one - other).square().flatten(1).mean(1) / scale
        for one, other, scale in zip(found, wanted, spread, strict=True)
    ]
    return torch.stack(parts).mean(0)


def sweep(
    subject: Subject,
    pictures: Floats,
    prey: Prey,
    score: Callable[[Floats, Floats], float],
    steps: int,
    tick: Tick,
) -> list[tuple[float, float]]:
    """Score every weight on pictures that are not attacked afterwards.

    Args:
        subject: the head.
        pictures: the true ones, disjoint from those that are scored in the audit.
        prey: their features.
        score: of reconstructions and originals; larger is a better attack.
        steps: of each run.
        tick: called after each step.

    Returns:
        Weight and score of each run.
    """
    return [
        (weight, score(optimise(subject, prey, weight, steps, tick).pictures, pictures))
        for weight in WEIGHTS
    ]
