"""From figures to a level: the strongest attack, the upper end, and never a 1 without a control."""

from pathlib import Path

import numpy as np
import pytest

from splitserve.audit.document import Attempt, Baselines, Bits, Probe, Threat
from splitserve.audit.policy import LEVELS, Beside, Policy, judge, read_policy
from splitserve.audit.score import figure, score, share
from splitserve.errors import UsageError

GUESS = Baselines(mean_picture_psnr=12.6, mean_picture_ssim=0.04, chance_identified=0.005)
THREAT = Threat(knowledge="weights", data="none")


def attempt(
    identified: float = 0.0, ssim: float = 0.1, psnr: float = 10.0, *, converged: bool = True
) -> Attempt:
    hits = np.arange(200) < round(200 * identified)
    return Attempt(
        attack="inverse", threat=THREAT, settings={"steps": 360}, seed=0, pictures=200,
        error=figure(np.full(200, 0.1), 0, "least"),
        psnr=figure(np.full(200, psnr), 0), ssim=figure(np.full(200, ssim), 0),
        identified=share(hits), gallery=200, has_converged=converged,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("one", "level"),
    [
        (attempt(identified=1.0), 5),
        (attempt(ssim=0.61), 5),
        (attempt(psnr=20.5), 5),
        (attempt(identified=0.6), 4),
        (attempt(ssim=0.31), 4),
        (attempt(identified=0.15), 3),
        (attempt(identified=0.05), 2),
        (attempt(), 1),
    ],
)
def test_the_level_follows_the_thresholds(one: Attempt, level: int):
    found, reasons = judge([one], GUESS, Policy(), Beside(has_control=True))
    assert found == level
    assert reasons
    assert LEVELS[found]


def test_a_picture_no_better_than_a_guess_shows_nothing():
    """Smooth pictures have an SSIM of 0.3 with their mean."""
    smooth = GUESS.model_copy(update={"mean_picture_ssim": 0.32})
    assert judge([attempt(ssim=0.31)], smooth, Policy(), Beside(has_control=True))[0] == 1
    assert judge([attempt(ssim=0.33)], smooth, Policy(), Beside(has_control=True))[0] == 4


def test_the_strongest_attack_counts():
    assert judge([attempt(), attempt(ssim=0.7)], GUESS, Policy(), Beside(has_control=True))[0] == 5


def test_nothing_is_cleared_without_a_control_or_without_convergence():
    assert judge([attempt()], GUESS, Policy(), Beside(has_control=False))[0] == 2
    assert judge([attempt(converged=False)], GUESS, Policy(), Beside(has_control=True))[0] == 2


def test_the_upper_end_of_the_interval_counts():
    """86 % of 200 identified: the interval reaches 90 %."""
    assert judge([attempt(identified=0.87)], GUESS, Policy(), Beside(has_control=True))[0] == 5


def test_what_a_probe_reads_beyond_the_answers_is_level_2():
    bits = Bits(bits=0.5, low=0.4, high=0.6, balanced_accuracy=0.8)
    probe = Probe(
        attribute="kind", values=2, pictures=200, entropy_bits=1, features=bits, answers=bits,
        pixels=bits, shuffled=bits, excess_bits=0.2,
    )  # fmt: skip
    level, reasons = judge([attempt()], GUESS, Policy(), Beside(has_control=True, probe=probe))
    assert (level, reasons) == (2, ("0.20 bit more about kind than the answers",))
    less = probe.model_copy(update={"excess_bits": 0.05})
    assert judge([attempt()], GUESS, Policy(), Beside(has_control=True, probe=less))[0] == 1


def test_a_policy_file_changes_the_level(tmp_path: Path):
    path = tmp_path / "policy.toml"
    path.write_text('name = "ours/1"\n[exposed]\nssim = 0.05\n')
    policy = read_policy(path)
    assert judge([attempt()], GUESS, policy, Beside(has_control=True))[0] == 5
    assert policy.high.identified == 0.5


@pytest.mark.parametrize("text", ["name = ", "[exposed]\nssim = 2\n", "[other]\n"])
def test_what_is_no_policy_is_refused(text: str, tmp_path: Path):
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"policy\.toml"):
        read_policy(path)


def test_scores_are_against_a_larger_gallery():
    gallery = np.random.default_rng(0).random((30, 3, 16, 16)).astype(np.float32)
    found = score(gallery[:10], gallery)
    assert (found.margins > 0).all()
    assert len(found.psnr) == 10
    assert found.ssim == pytest.approx(np.ones(10))
    assert sorted(found.order) == list(range(10))
    spread = figure(np.arange(101, dtype=float), 0)
    assert (spread.mean, spread.median, spread.p95, spread.worst) == (50, 50, 95, 100)
