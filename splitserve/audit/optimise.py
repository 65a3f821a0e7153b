"""White-box optimisation: the picture whose features come nearest to those received.

Adam from grey on the distance of the features plus total variation (regularised maximum likelihood,
He, Zhang and Lee, ACSAC 2019). Two settings decide it, the weight of the variation and the
number of steps; an untuned attack gives a false all-clear. So the weight is tuned on pictures that
are not scored, and the whole sweep is in the report.

What is ours was chosen on CIFAR-10 pictures that no gate scores. Adam's averages are long for the
gradient and short for its square, because the distance falls by six orders of magnitude: behind
ResNet-20's first stage that is worth 14 dB over the usual 0.9 and 0.999. The three colours share
one variation (5 dB there), and its weight starts ten times higher (1 dB at deep cuts).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from splitserve.audit.device import to_array, to_tensor
from splitserve.audit.subject import Floats, Subject

RATE = 0.05
BETAS = (0.97, 0.99)
WEIGHTS = (0.0, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1)
HIGH, FALL = 10.0, 0.7  # the weight starts so many times higher, and falls over this share of steps
SMOOTH = 1e-3  # of a pixel's range; where the variation stops being a corner
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
    """Mean length of the pixels' gradients, both directions and all colours in one.

    Source: Blomgren and Chan, Color TV, IEEE TIP 7(3), 1998, smoothed at zero.
    """
    here = pictures[:, :, :-1, :-1]
    down, right = pictures[:, :, 1:, :-1] - here, pictures[:, :, :-1, 1:] - here
    squares = (down.square() + right.square()).sum(1)
    return (squares + SMOOTH**2).sqrt().mean()


def _height(done: float) -> float:
    """How many times its own weight the variation has, of the share of steps done."""
    return float(HIGH ** max(0.0, 1 - done / FALL))


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
        weight: of the total variation, at the end.
        steps: of Adam, with a rate that falls to nothing along a cosine.
        tick: called after each step.
    """
    wanted = [to_tensor(values) for values in prey.received]
    spread = [float(values.var()) + 1e-12 for values in wanted]
    count = len(wanted[0])
    pictures = torch.full((count, 3, *subject.size), GREY, requires_grad=True)
    optimiser = torch.optim.Adam([pictures], RATE, BETAS)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        variation = weight * _height(step / steps) * count
        distance = _distance(subject.features(pictures, prey.names), wanted, spread)
        # The sum, not the mean, so that a picture's gradient does not depend on the others.
        loss = distance.sum() + variation * total_variation(pictures)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            pictures.clamp_(0, 1)
        tick()
    with torch.no_grad():
        distance = _distance(subject.features(pictures, prey.names), wanted, spread)
    return Found(to_array(pictures), to_array(distance))


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
