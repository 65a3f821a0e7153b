"""Gates A: the instruments themselves, against independent ones and against theory."""

import numpy as np
import torch
from skimage import metrics as reference

from splitserve.audit.fisher import (
    error_floor,
    estimate_trace,
    exact_trace,
    flat_head,
)
from splitserve.audit.metrics import (
    binomial_interval,
    distance_correlation,
    distances,
    identify,
    plain_distance_correlation,
    psnr,
    ssim,
)
from splitserve.audit.subject import Subject
from splitserve.bench.gates.gate import Gate
from splitserve.bench.gates.network import Bench, Tick

PAIRS = 20
SMALL = 12  # pixels a side where every unit vector is affordable
PROBES = 200
ROWS, DEVIATION = 216, 0.7
DIMENSIONS = 3072
INDEPENDENT = 128


def measure(bench: Bench, tick: Tick) -> list[Gate]:
    """A1 to A3."""
    gates = [*_scores(bench), *_identification(bench), *_fisher(bench), *_correlation()]
    tick()
    return gates


def _scores(bench: Bench) -> list[Gate]:
    """PSNR and SSIM against scikit-image's."""
    generator = np.random.default_rng(bench.seed)
    true = bench.pictures.test[:PAIRS].astype(np.float64)
    seen = np.clip(true + generator.normal(0, 0.1, true.shape), 0, 1)
    others = [
        (
            reference.peak_signal_noise_ratio(b, a, data_range=1),
            reference.structural_similarity(
                a,
                b,
                data_range=1,
                channel_axis=0,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            ),
        )
        for a, b in zip(seen, true, strict=True)
    ]
    apart = np.abs(np.stack([psnr(seen, true), ssim(seen, true)], 1) - np.array(others)).max()
    what = f"PSNR and SSIM of {PAIRS} pairs, ours less scikit-image's"
    return [Gate("A1", what, f"{apart:.1e}", float(apart), 1e-4, is_least=False)]


def _identification(bench: Bench) -> list[Gate]:
    """All of the pictures themselves, and of shuffled ones no more than chance."""
    pictures = bench.pictures.test.astype(np.float64)
    hits, _ = identify(pictures, pictures)
    order = np.roll(np.arange(len(pictures)), 1)
    shuffled, _ = identify(pictures[order], pictures)
    chance = binomial_interval(int(shuffled.sum()), len(pictures))
    return [
        Gate("A1", "pictures identified by themselves", f"{hits.mean():.0%}", hits.mean(), 1),
        Gate(
            "A1",
            "shuffled pictures identified, low end; chance is its limit",
            f"{chance.value:.1%} [{chance.low:.1%}, {chance.high:.1%}]",
            chance.low,
            1 / len(pictures),
            is_least=False,
        ),
    ]


def _fisher(bench: Bench) -> list[Gate]:
    """Hutchinson's estimate against every unit vector; least squares against its theory."""
    subject = Subject(bench.artifact, 1, (SMALL, SMALL))
    pictures = np.ascontiguousarray(bench.pictures.test[:2, :, :SMALL, :SMALL])
    head = flat_head(subject)
    found = estimate_trace(head, pictures, PROBES, bench.seed)
    exact = float(np.mean([exact_trace(head, torch.from_numpy(one)) for one in pictures]))
    apart = abs(found.mean - exact) / found.error
    generator = torch.Generator().manual_seed(bench.seed)
    weights = torch.randn(2 * ROWS, ROWS, generator=generator, dtype=torch.float64)
    x = torch.rand(256, ROWS, generator=generator, dtype=torch.float64)
    noise = DEVIATION * torch.randn(256, 2 * ROWS, generator=generator, dtype=torch.float64)
    solved = torch.linalg.lstsq(weights, (x @ weights.T + noise).T).solution.T
    error = float((solved - x).square().mean())
    theory = DEVIATION**2 * float(torch.linalg.inv(weights.T @ weights).trace()) / ROWS
    floor = error_floor(float(weights.square().sum()) / ROWS / DEVIATION**2)
    return [
        Gate(
            "A2",
            f"trace of the stem's J'J, {PROBES} probes: standard errors from the exact one",
            f"{apart:.2f} ({found.mean:.4g}, exactly {exact:.4g})",
            apart,
            3,
            is_least=False,
        ),
        Gate("A2", "least squares on a linear head: error over the floor", f"{error / floor:.3f}",
             error / floor, 1),
        Gate("A2", "the same: distance from tr((J'J)^-1) s^2 / d", f"{abs(error / theory - 1):.2%}",
             abs(error / theory - 1), 0.05, is_least=False),
    ]  # fmt: skip


def _correlation() -> list[Gate]:
    generator = np.random.default_rng(0)
    a, b = (distances(generator.normal(size=(INDEPENDENT, DIMENSIONS))) for _ in range(2))
    ours, plain = distance_correlation(a, b), plain_distance_correlation(a, b)
    what = f"independent Gaussians, n = {INDEPENDENT}, {DIMENSIONS} values:"
    return [
        Gate("A3", f"{what} corrected", f"{ours:+.4f}", abs(ours), 0.05, is_least=False),
        Gate("A3", f"{what} plain", f"{plain:.4f}", plain, 0.9),
    ]
