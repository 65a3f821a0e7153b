"""What fresh noise on the features guarantees, and what the head's own geometry suggests.

For z = f(x) + N(0, s^2 I) the Fisher information about x is J'J / s^2. Its trace over the number
of pixels, dFIL, bounds every unbiased attacker: mean squared error >= 1 / dFIL per pixel (Cramer
and Rao; Maeng, Guo, Kariyappa, Suh, arXiv 2209.10119). Without noise there is no bound at all.
dFIL is for calibrating noise, never for comparing cuts: a few directions of high gain rule it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.functional import jacobian, jvp

from splitserve.audit.device import to_tensor
from splitserve.audit.metrics import bootstrap_mean
from splitserve.audit.subject import Floats, Subject

Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Trace:
    """Trace of J'J over the number of pixels and channels, by picture.

    Args:
        mean: over the pictures.
        smallest: of them.
        largest: of them.
        high: upper end of the mean's 95 % bootstrap interval over the pictures.
        error: standard error that the probes leave.
    """

    mean: float
    smallest: float
    largest: float
    high: float
    error: float


def flat_head(
    subject: Subject, names: Sequence[str] | None = None, units: Sequence[float] | None = None
) -> Head:
    """The head as one function from pictures to one vector each.

    Args:
        subject: the head.
        names: tensors to end at; the egress by default.
        units: what each tensor is divided by: with the noise's standard deviations the trace of
            J'J over the number of pixels is dFIL.
    """

    def run(pictures: Tensor) -> Tensor:
        found = subject.features(pictures, names)
        scales = units or [1.0] * len(found)
        return torch.cat(
            [(one / scale).flatten(1) for one, scale in zip(found, scales, strict=True)], 1
        )

    return run


def estimate_trace(head: Head, pictures: Floats, probes: int, seed: int) -> Trace:
    """Hutchinson's estimate: the mean of |Jv|^2 over random signs v, one product each.

    Args:
        head: differentiable; the input is 0 to 1.
        pictures: (n, 3, height, width).
        probes: random vectors.
        seed: of these.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    x = to_tensor(pictures)
    rows = []
    for _ in range(probes):
        signs = torch.randint(0, 2, x.shape, generator=generator, device="cpu").to(x) * 2 - 1
        _, moved = jvp(head, x, signs)
        rows.append(moved.square().sum(1) / x[0].numel())
    seen = torch.stack(rows)
    means = seen.mean(0)
    error = float((seen.var(0) / probes).sum().sqrt() / len(means))
    high = bootstrap_mean(means.tolist(), seed).high
    return Trace(float(means.mean()), float(means.min()), float(means.max()), high, error)


def exact_trace(head: Head, picture: Tensor) -> float:
    """The same of one picture by every unit vector; for small pictures."""
    rows = jacobian(lambda x: head(x[None])[0], picture)
    return float(rows.square().sum() / picture.numel())


def noise_for(trace: float, least_error: float) -> float:
    """Standard deviation that guarantees a mean squared error to unbiased attackers.

    Args:
        trace: of J'J over the number of pixels.
        least_error: per pixel of range 0 to 1; 0.01 is a PSNR of 20 dB.
    """
    return math.sqrt(trace * least_error)


def error_floor(dfil: float, observations: int = 1, variance: float = math.inf) -> float:
    """Least mean squared error of an attacker who sees a picture several times.

    Independent noise is averaged away.

    Args:
        dfil: of one observation; 1 / dfil bounds unbiased attackers.
        observations: of the same picture.
        variance: of the pictures, for an attacker who knows it: van Trees' bound with a Gaussian
            prior. Pictures are not Gaussian, so with it the floor is an estimate.
    """
    return 1 / (observations * dfil + 1 / variance)
