"""A whole audit of a small head: every attack, the control, figures and levels."""

from pathlib import Path

import pytest

from splitserve.artifact import load_artifact
from splitserve.audit.attacks import ATTACKS, steps_of
from splitserve.audit.budget import BUDGETS, Budget
from splitserve.audit.images import procedural
from splitserve.audit.laboratory import Laboratory, Target
from splitserve.audit.policy import Policy
from splitserve.audit.run import Findings, attack_all, find
from splitserve.audit.subject import transport_of
from splitserve.errors import UsageError

TINY = Budget("tiny", 20, 48, 20, 3, 10, 2, 4, 10)


def laboratory(path: Path, codec: str | None = "step-ans", auxiliary: int = 24) -> Laboratory:
    artifact = load_artifact(path)
    manifest = artifact.manifest
    targets = [
        Target(
            position,
            cut.name,
            tuple(spec.name for spec in cut.egress),
            transport_of(artifact, position, codec, None),
        )
        for position, cut in enumerate(manifest.cuts, 1)
    ]
    assert manifest.preprocess
    height, width = manifest.preprocess.crop
    pictures = procedural(24, height, width, 5), procedural(auxiliary, height, width, 6)
    return Laboratory(artifact, targets, pictures, TINY, seed=0)


@pytest.fixture(scope="module")
def lab(calibrated_artifact: Path) -> Laboratory:
    return laboratory(calibrated_artifact)


@pytest.fixture(scope="module")
def findings(lab: Laboratory) -> Findings:
    return find(lab, attack_all(lab, list(ATTACKS), lambda _: None), Policy())


def test_every_attack_is_run_on_every_cut(lab: Laboratory, findings: Findings):
    assert [cut.cut for cut in findings.cuts] == [target.name for target in lab.targets]
    wanted = {"inverse, data-free", "inverse, noise pictures", "inverse, auxiliary pictures",
              "decoder, queries", "optimisation"}  # fmt: skip
    for cut in findings.cuts:
        assert {one.attack for one in cut.attempts} == wanted
        for one in cut.attempts:
            assert one.psnr.low <= one.psnr.mean <= one.psnr.high <= one.psnr.worst + 1e-9
            assert one.gallery == 20
        assert cut.agreement
        assert cut.bytes_up > 0
        assert cut.bound.least_error is None
        assert "no bound" in cut.bound.reason
        assert cut.level >= 2
        assert cut.reasons


def test_attackers_see_what_the_codec_leaves(lab: Laboratory):
    target = lab.targets[0]
    (plain,) = lab.subject.collect(lab.attacked, list(target.egress))
    (received,) = lab.received(target, lab.attacked)
    assert received.shape == plain.shape
    assert (received != plain).any()
    assert (lab.pairs(lab.attacked).received[lab.depth_of(target) or 0] == received).all()


def test_pictures_for_tuning_are_not_scored(lab: Laboratory):
    tuned = {picture.tobytes() for picture in lab.tuning}
    assert not tuned & {picture.tobytes() for picture in lab.attacked}
    assert not tuned & {picture.tobytes() for picture in lab.optimised}


def test_the_same_seed_gives_the_same_figures(calibrated_artifact: Path, findings: Findings):
    again = laboratory(calibrated_artifact)
    found = find(again, attack_all(again, list(ATTACKS), lambda _: None), Policy())
    assert found.cuts == findings.cuts
    assert found.control == findings.control


def test_progress_ticks_as_often_as_was_said(calibrated_artifact: Path):
    lab = laboratory(calibrated_artifact, codec=None)
    for name in ATTACKS:
        ticks: list[str] = []
        attack_all(lab, [name], ticks.append)
        assert len(ticks) == steps_of(name, lab)


def test_without_auxiliary_pictures_that_attack_is_left_out(calibrated_artifact: Path):
    assert not attack_all(laboratory(calibrated_artifact, auxiliary=0), ["auxiliary"], print)


def test_too_few_pictures_are_refused(calibrated_artifact: Path):
    lab = laboratory(calibrated_artifact)
    with pytest.raises(UsageError, match="4 pictures are needed"):
        Laboratory(lab.artifact, lab.targets, (lab.pictures[:3], lab.auxiliary), TINY, 0)


def test_budgets_grow():
    sizes = [BUDGETS[name] for name in ("quick", "standard", "thorough")]
    assert [b.steps for b in sizes] == sorted(b.steps for b in sizes)
    assert [b.pictures for b in sizes] == sorted(b.pictures for b in sizes)
