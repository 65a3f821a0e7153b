"""The six-convolution network as it is written, and how figures are held against claims."""

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.progress import Progress

from splitserve.audit.metrics import Interval
from splitserve.bench.published import Claim, _judged
from splitserve.bench.six_layer import CUTS, build_network, jitter, prepared, to_onnx
from splitserve.runtime import Graph, RuntimeOptions


def test_the_written_network_answers_like_the_trained_one():
    network = build_network(3).eval()
    pictures = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    graph = Graph(to_onnx(network), RuntimeOptions())
    got = np.concatenate([graph.run({"image": one[None]})["logits"] for one in pictures])
    with torch.no_grad():
        want = network(torch.from_numpy(pictures)).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_jitter_keeps_shape_and_range_and_follows_its_seed():
    pictures = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    one, other = (jitter(pictures, torch.Generator().manual_seed(5)) for _ in range(2))
    assert one.shape == pictures.shape
    assert float(one.min()) >= 0
    assert float(one.max()) <= 1
    assert torch.equal(one, other)
    assert not torch.equal(one, pictures)


def test_a_network_is_trained_once_and_cut_where_the_study_cut_it(tmp_path: Path):
    draw = np.random.default_rng(0)
    data = draw.random((64, 3, 32, 32), np.float32), draw.integers(0, 10, 64)
    made = []
    for _ in range(2):
        with Progress(disable=True) as progress:
            made.append(prepared((tmp_path, 1, 0), data, data, progress))
    (artifact, facts), (again, same) = made
    assert artifact.id == again.id
    assert facts == same
    assert {cut.name for cut in artifact.manifest.cuts} == set(CUTS)
    assert 0 <= facts["test_accuracy"] <= 1


@pytest.mark.parametrize(
    ("claim", "mean", "pictures", "is_met"),
    [
        (Claim(20, 0.5, least=19), Interval(19.5, 18.5, 20.5), 10, True),
        (Claim(20, 0.5, least=19), Interval(19.5, 18.5, 20.5), 200, False),
        (Claim(20, 0.5, most=14), Interval(13.5, 13, 14.5), 10, True),
        (Claim(20, 0.5, most=14), Interval(13.5, 13, 14.5), 200, False),
        (Claim(20, 0.5), Interval(1, 1, 1), 200, None),
        (Claim(20, 0.5, least=1, least_ssim=0.9), Interval(5, 5, 5), 200, False),
    ],
)
def test_many_pictures_are_judged_by_the_unlucky_end(
    claim: Claim, mean: Interval, pictures: int, is_met: bool | None
) -> None:
    row = _judged(claim, mean, Interval(0.6, 0.6, 0.6), pictures)
    assert row["is_met"] is is_met
    assert row["reaches_published"] is (mean.value >= 20)
