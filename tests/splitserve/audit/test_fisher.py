"""The bound that noise gives: the estimate, the exact trace, and an attacker who cannot beat it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from splitserve.artifact import load_artifact
from splitserve.audit.fisher import (
    error_floor,
    estimate_trace,
    exact_trace,
    flat_head,
    noise_for,
)
from splitserve.audit.subject import Subject

SIDE = 6
COUNT = 3 * SIDE * SIDE


def linear_head(seed: int = 0, rows: int = 2 * COUNT) -> tuple[torch.Tensor, object]:
    weights = torch.randn(rows, COUNT, generator=torch.Generator().manual_seed(seed))
    return weights, lambda x: x.flatten(1) @ weights.T


def test_hutchinsons_estimate_is_within_three_errors_of_the_exact_trace(tiny_artifact: Path):
    subject = Subject(load_artifact(tiny_artifact), 1, (12, 12))
    pictures = np.random.default_rng(0).random((2, 3, 12, 12)).astype(np.float32)
    head = flat_head(subject)
    found = estimate_trace(head, pictures, probes=200, seed=1)
    exact = np.mean([exact_trace(head, torch.from_numpy(one)) for one in pictures])
    assert abs(found.mean - exact) < 3 * found.error
    assert found.smallest <= found.mean <= found.largest
    assert found.error < 0.1 * exact


def test_least_squares_reaches_its_own_error_and_never_beats_the_floor():
    weights, head = linear_head()
    pictures = np.random.default_rng(1).random((64, 3, SIDE, SIDE)).astype(np.float32)
    deviation = 0.7
    trace = estimate_trace(head, pictures, probes=100, seed=0).mean
    exact = float(weights.square().sum()) / COUNT
    assert trace == pytest.approx(exact, rel=0.05)
    generator = torch.Generator().manual_seed(2)
    x = torch.from_numpy(pictures)
    noise = deviation * torch.randn(64, len(weights), generator=generator)
    found = torch.linalg.lstsq(weights, (head(x) + noise).T).solution.T
    error = float((found - x.flatten(1)).square().mean())
    inverse = torch.linalg.inv(weights.T @ weights)
    assert error == pytest.approx(deviation**2 * float(inverse.trace()) / COUNT, rel=0.05)
    assert error >= error_floor(exact / deviation**2)


def test_noise_is_calibrated_to_its_floor_and_repetition_undoes_it():
    deviation = noise_for(trace=42.0, least_error=0.01)
    assert deviation == pytest.approx(0.648, abs=1e-3)
    dfil = 42.0 / deviation**2
    assert error_floor(dfil) == pytest.approx(0.01)
    assert error_floor(dfil, observations=16) == pytest.approx(0.01 / 16)


def test_who_knows_what_pictures_look_like_is_never_worse_than_guessing():
    assert error_floor(1e-9, variance=0.06) == pytest.approx(0.06)
    assert error_floor(100.0, variance=0.06) < error_floor(100.0)


def test_the_units_of_a_head_turn_its_trace_into_fisher_information(tiny_artifact: Path):
    subject = Subject(load_artifact(tiny_artifact), 1, (12, 12))
    pictures = np.random.default_rng(0).random((2, 3, 12, 12)).astype(np.float32)
    units = [0.5] * len(subject.egress)
    plain, scaled = (
        estimate_trace(flat_head(subject, subject.egress, unit), pictures, probes=20, seed=1).mean
        for unit in (None, units)
    )
    assert scaled == pytest.approx(4 * plain, rel=1e-5)
