"""A whole audit of a small head: every attack, the control, figures and levels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from splitserve.artifact import Noise, Withdrawn, load_artifact
from splitserve.audit.answers import Answers
from splitserve.audit.attacks import ATTACKS, steps_of
from splitserve.audit.budget import BUDGETS, Budget
from splitserve.audit.defences import fit_defence, parse_defence
from splitserve.audit.document import CutAudit
from splitserve.audit.images import procedural
from splitserve.audit.laboratory import Laboratory, Material, Target
from splitserve.audit.policy import Policy
from splitserve.audit.run import Findings, Judge, attack_all
from splitserve.audit.subject import Transport, transport_of
from splitserve.errors import UsageError
from splitserve.runtime import RuntimeOptions, open_chain

TINY = Budget("tiny", 20, 48, 20, 3, 10, 2, 16, 10)


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
    pictures = procedural(24, height, width, 5)
    others = procedural(auxiliary, height, width, 6)
    labels = [index % 3 for index in range(auxiliary)]
    material = Material(pictures, others, pictures[:20], labels)
    return Laboratory(artifact, targets, material, TINY, seed=0)


def findings_of(labs: list[Laboratory], names: list[str]) -> Findings:
    base = labs[0].plain or labs[0]
    return Judge(base, Policy()).find(labs, attack_all(labs, names, lambda _: None))


@pytest.fixture(scope="module")
def lab(calibrated_artifact: Path) -> Laboratory:
    return laboratory(calibrated_artifact)


@pytest.fixture(scope="module")
def findings(lab: Laboratory) -> Findings:
    return findings_of([lab], list(ATTACKS))


def test_every_attack_is_run_on_every_cut(lab: Laboratory, findings: Findings):
    assert [cut.cut for cut in findings.cuts] == [target.name for target in lab.targets]
    wanted = {"inverse, data-free", "inverse, noise pictures", "inverse, auxiliary pictures",
              "decoder, queries", "shadow head", "optimisation"}  # fmt: skip
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
    found = findings_of([again], list(ATTACKS))
    assert found.cuts == findings.cuts
    assert found.control == findings.control


def test_progress_ticks_as_often_as_was_said(calibrated_artifact: Path):
    lab = laboratory(calibrated_artifact, codec=None)
    for name in ATTACKS:
        ticks: list[str] = []
        attack_all([lab], [name], ticks.append)
        assert len(ticks) == steps_of(name, [lab])


def test_without_auxiliary_pictures_that_attack_is_left_out(calibrated_artifact: Path):
    assert not attack_all([laboratory(calibrated_artifact, auxiliary=0)], ["auxiliary"], print)


def test_too_few_pictures_are_refused(calibrated_artifact: Path):
    lab = laboratory(calibrated_artifact)
    few = replace(lab.material, pictures=lab.pictures[:3])
    with pytest.raises(UsageError, match="4 pictures are needed"):
        Laboratory(lab.artifact, lab.targets, few, TINY, 0)


def test_budgets_grow():
    sizes = [BUDGETS[name] for name in ("quick", "standard", "thorough")]
    assert [b.steps for b in sizes] == sorted(b.steps for b in sizes)
    assert [b.pictures for b in sizes] == sorted(b.pictures for b in sizes)


@pytest.fixture(scope="module")
def guarded(calibrated_artifact: Path) -> Findings:
    plain = laboratory(calibrated_artifact, codec=None)
    chain = open_chain(plain.artifact, RuntimeOptions())
    labs = [plain]
    for text in ("noise:0.01", "channels:0.5", "withdrawn"):
        asked = parse_defence(text)
        whole = plain.material.whole
        labs.append(
            plain.behind(
                [
                    fit_defence(asked, plain.artifact, t.position, whole, chain)
                    for t in plain.targets
                ]
            )
        )
    return findings_of(labs, ["data-free", "optimise"])


def test_a_defence_is_attacked_by_those_who_know_it_and_those_who_do_not(guarded: Findings):
    by = {(cut.cut, cut.asked): cut for cut in guarded.cuts}
    assert {asked for _, asked in by} == {"none", "noise:0.01", "channels:0.5", "withdrawn"}
    for (_, asked), cut in by.items():
        adapts = [(one.attack, one.threat.adapts) for one in cut.attempts]
        if asked == "withdrawn":
            assert not adapts
            assert (cut.level, cut.bytes_up) == (1, 0)
        elif asked == "none":
            assert adapts == [("inverse, data-free", True), ("optimisation", True)]
        else:
            assert sorted(adapts) == [
                ("inverse, data-free", False), ("inverse, data-free", True), ("optimisation", True),
            ]  # fmt: skip


def test_only_noise_has_a_floor_and_no_attack_beats_it(guarded: Findings):
    for cut in guarded.cuts:
        if cut.asked != "noise:0.01":
            assert cut.bound.least_error is None
            continue
        assert cut.bound.least_error == pytest.approx(0.01, rel=0.5)
        assert cut.bound.least_error_worst
        assert cut.bound.least_error_worst <= cut.bound.least_error
        assert min(one.error.high for one in cut.attempts) >= cut.bound.least_error_worst


def test_a_defence_without_an_attacker_who_knows_it_cannot_be_reported(guarded: Findings):
    cut = next(one for one in guarded.cuts if one.asked == "noise:0.01")
    naive = tuple(one for one in cut.attempts if not one.threat.adapts)
    with pytest.raises(ValidationError, match=r"no attack was adapted to the defence noise:0\.01"):
        CutAudit.model_validate({**dict(cut), "attempts": naive})


def test_the_mean_of_many_noisy_views_is_nearer_to_the_features(calibrated_artifact: Path):
    lab = laboratory(calibrated_artifact, codec=None)
    noise = Noise(asked="noise:1rms", deviations=(1.0,))
    target = lab.targets[0]
    (plain,) = lab.subject.collect(lab.attacked, list(target.egress))
    errors = []
    for count in (1, 16):
        transport = Transport(None, "none", defence=noise, observations=count)
        (seen,) = transport.carry([plain])
        errors.append(float(np.square(seen - plain).mean()))
    assert errors[0] == pytest.approx(1.0, rel=0.05)
    assert errors[1] == pytest.approx(1 / 16, rel=0.05)


def test_cuts_may_differ_in_their_defences(calibrated_artifact: Path):
    """As an artifact holds them: one withdrawn, one behind noise, the others as they are."""
    plain = laboratory(calibrated_artifact, codec=None)
    noise = Noise(asked="noise:1rms", deviations=(1.0,))
    others = [None] * (len(plain.targets) - 2)
    lab = plain.behind([Withdrawn(), noise, *others])
    cuts = {cut.cut: cut for cut in findings_of([lab], ["data-free"]).cuts}
    assert set(cuts) == {target.name for target in plain.targets}
    first, second, *rest = (cuts[target.name] for target in plain.targets)
    assert (first.asked, len(first.attempts)) == ("withdrawn", 0)
    assert [one.threat.adapts for one in second.attempts] == [True, False]
    for cut in rest:
        assert [one.threat.adapts for one in cut.attempts] == [True]


def test_an_attacker_who_knows_the_mask_models_what_travels_at_every_cut(
    calibrated_artifact: Path,
) -> None:
    plain = laboratory(calibrated_artifact, codec=None)
    chain, whole = open_chain(plain.artifact, RuntimeOptions()), plain.material.whole
    asked = parse_defence("channels:0.5")
    lab = plain.behind(
        [fit_defence(asked, plain.artifact, t.position, whole, chain) for t in plain.targets]
    )
    for target in lab.targets:
        names = list(target.egress)
        known = lab.subject.behind(target.transport.defence, names)
        (received,) = lab.received(target, lab.attacked)
        np.testing.assert_allclose(known.collect(lab.attacked, names)[0], received, atol=1e-5)


def test_a_defence_at_one_cut_leaves_the_attack_on_another_alone(calibrated_artifact: Path):
    plain = laboratory(calibrated_artifact, codec=None)
    _first, *others = plain.targets
    chain, whole = open_chain(plain.artifact, RuntimeOptions()), plain.material.whole
    mask = fit_defence(parse_defence("channels:0.2"), plain.artifact, 1, whole, chain)
    mixed = plain.behind([mask, *(None for _ in others)])
    found = {cut.cut: cut for cut in findings_of([mixed], ["data-free"]).cuts}
    alone = {cut.cut: cut for cut in findings_of([plain], ["data-free"]).cuts}
    for target in others:
        assert found[target.name].attempts == alone[target.name].attempts


def test_the_control_is_no_result_of_a_cut(calibrated_artifact: Path):
    """It is taken without the codec; the shallowest cut is audited behind it."""
    plain = laboratory(calibrated_artifact, codec="affine-u8")
    noise = Noise(asked="noise:1rms", deviations=(1.0,))
    lab = plain.behind([None, noise, *(None for _ in plain.targets[2:])])
    cut = findings_of([lab], ["data-free"]).cuts[0]
    assert [one.attack for one in cut.attempts] == ["inverse, data-free"]


def test_the_same_cut_behind_the_same_defence_is_attacked_once(calibrated_artifact: Path):
    plain = laboratory(calibrated_artifact, codec=None)
    noise = Noise(asked="noise:1rms", deviations=(1.0,))
    own = plain.behind([None, *(noise for _ in plain.targets[1:])])
    none = plain.behind([None for _ in plain.targets])
    none.leave_out([own])
    assert [target.name for target in none.targets] == [t.name for t in plain.targets[1:]]


def test_repeated_views_do_not_change_what_the_defence_costs(calibrated_artifact: Path):
    plain = laboratory(calibrated_artifact, codec=None)
    noise = Noise(asked="noise:8rms", deviations=(8.0,))
    kept = []
    for count in (1, 16):
        lab = plain.behind([noise for _ in plain.targets])
        target = replace(
            lab.targets[0], transport=replace(lab.targets[0].transport, observations=count)
        )
        kept.append(Answers(lab).through(target)[0].tolist())
    assert kept[0] == kept[1]
