"""Divide and conquer on a small head: borders, shapes, and that learning inverts."""

from pathlib import Path

import numpy as np
import pytest
import torch

from splitserve.artifact import load_artifact
from splitserve.audit.images import procedural
from splitserve.audit.inverse import (
    Inverse,
    InverseBlock,
    Pairs,
    Recipe,
    batch_of,
    find_borders,
    train_inverse,
)
from splitserve.audit.metrics import identify, psnr
from splitserve.audit.optimise import WEIGHTS, Prey, optimise, sweep
from splitserve.audit.subject import Subject, transport_of


@pytest.fixture(scope="module")
def subject(calibrated_artifact: Path) -> Subject:
    artifact = load_artifact(calibrated_artifact)
    return Subject(artifact, 1)


def pairs_of(subject: Subject, count: int, seed: int = 0) -> tuple[Inverse, Pairs]:
    pictures = procedural(count, *subject.size, seed)
    borders = find_borders(subject, pictures[:4], subject.egress)
    before = subject.collect(pictures, [border.name for border in borders])
    inverse = Inverse(borders, (3, *subject.size))
    return inverse, Pairs(pictures, before, before)


def test_the_last_border_is_the_cut(subject: Subject):
    borders = find_borders(subject, procedural(2, *subject.size, 0), subject.egress)
    assert borders[-1].name == subject.egress[0]
    names = subject.graph.names
    assert [names.index(b.name) for b in borders] == sorted(names.index(b.name) for b in borders)


@pytest.mark.parametrize(
    ("after", "before"),
    [
        ((8, 4, 4), (3, 8, 8)),
        ((8, 7, 7), (6, 14, 14)),
        ((10, 1, 1), (4, 5, 5)),
        ((4, 9, 9), (4, 9, 9)),
    ],
)
def test_an_inverse_block_gives_the_shape_before(
    after: tuple[int, int, int], before: tuple[int, int, int]
) -> None:
    block = InverseBlock(after, before, 1, is_rectified=True)
    found = block(torch.randn(2, *after))
    assert found.shape == (2, *before)
    assert float(found.detach().min()) >= 0


def test_a_calibrated_block_does_not_depend_on_the_units_of_channels():
    draw = np.random.default_rng(0)
    after = draw.normal(2, 3, (16, 8, 4, 4)).astype(np.float32)
    before = draw.normal(0, 1, (16, 3, 8, 8)).astype(np.float32)
    units = draw.uniform(0.5, 2, (8, 1, 1)).astype(np.float32)
    block = InverseBlock((8, 4, 4), (3, 8, 8), 0, is_rectified=False)
    block.calibrate(after, before)
    plain = block(torch.from_numpy(after)).detach()
    block.calibrate(after * units + 1, 5 * before)
    other = block(torch.from_numpy(after * units + 1)).detach()
    assert np.allclose(other, 5 * plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(16, 6), (16, 6, 4, 4)])
def test_a_channel_that_was_quiet_does_not_drown_the_others(shape: tuple[int, ...]):
    after = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    after[:, 0] = 0
    block = InverseBlock((6, *(shape[2:] or (1, 1))), (3, 4, 4), 0, is_rectified=False)
    block.calibrate(after, np.zeros((16, 3, 4, 4), np.float32))
    deviation = block.get_buffer("after_deviation")
    assert deviation.shape == (6, 1, 1)
    assert 0.01 < float(deviation[0]) < 0.03
    after[:, 0] = 1
    assert torch.isfinite(block(torch.from_numpy(after))).all()


def test_learning_inverts_pictures_that_were_never_seen(subject: Subject):
    inverse, pairs = pairs_of(subject, 96)
    losses = train_inverse(subject, inverse, pairs, Recipe(steps=120), lambda: None)
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) / 2
    fresh = procedural(24, *subject.size, 99)
    (features,) = subject.collect(fresh)
    found = inverse.invert(features, len(inverse.borders) - 1)
    mean = np.broadcast_to(pairs.pictures.mean(axis=(0, 2, 3), keepdims=True), fresh.shape)
    assert psnr(found, fresh).mean() > psnr(mean, fresh).mean() + 4
    assert identify(found, fresh)[0].mean() > 0.8


def test_the_same_seed_learns_the_same(subject: Subject):
    runs = []
    for _ in range(2):
        torch.manual_seed(len(runs))  # what else draws numbers does not matter
        inverse, pairs = pairs_of(subject, 24)
        runs.append(train_inverse(subject, inverse, pairs, Recipe(steps=4), lambda: None))
    assert runs[0] == runs[1]


def test_optimisation_finds_the_picture_through_the_codec(
    subject: Subject, calibrated_artifact: Path
) -> None:
    true = procedural(4, *subject.size, 7)
    transport = transport_of(load_artifact(calibrated_artifact), 1, "step-ans", None)
    prey = Prey(subject.egress, transport.carry(subject.collect(true)))
    found = optimise(subject, prey, 1e-3, 150, lambda: None)
    assert identify(found.pictures, true)[0].all()
    assert (found.distance < 0.5).all()
    scores = sweep(subject, true, prey, lambda a, b: float(psnr(a, b).mean()), 5, lambda: None)
    assert [weight for weight, _ in scores] == list(WEIGHTS)


@pytest.mark.parametrize(("side", "count"), [(32, 24), (64, 24), (96, 10), (128, 8), (224, 8)])
def test_large_pictures_come_in_small_batches(side: int, count: int):
    assert batch_of(side * side) == count
