"""From a laboratory to an audit: attacks, figures, bounds, and a level for every cut."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from splitserve.agreement import best_class
from splitserve.audit.attacks import ATTACKS, Loot
from splitserve.audit.document import (
    Attempt,
    Baselines,
    Bound,
    CutAudit,
    Defence,
    Estimates,
    Share,
)
from splitserve.audit.fisher import estimate_trace, flat_head
from splitserve.audit.laboratory import Laboratory, Target
from splitserve.audit.metrics import distance_correlation, distances, permutation_p, psnr
from splitserve.audit.policy import Policy, judge
from splitserve.audit.score import figure, score, share
from splitserve.audit.subject import Floats
from splitserve.runtime import Chain, RuntimeOptions, open_chain

CONTROL_IDENTIFIED = 0.9
TRACED = 8
NO_BOUND = "no bound: the cut is deterministic, no fresh noise is added"

Tick = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Findings:
    """What the attacks brought, cut by cut.

    Args:
        cuts: the audited ones.
        control: the shallowest block, where the attacks were shown to work; None where not.
        baselines: of guessing.
        loot: with the reconstructions, for the gallery.
    """

    cuts: tuple[CutAudit, ...]
    control: str | None
    baselines: Baselines
    loot: tuple[Loot, ...]


def attack_all(lab: Laboratory, names: Sequence[str], tick: Tick) -> list[Loot]:
    """Run the attacks in their order."""
    return [loot for name in names for loot in ATTACKS[name](lab, partial(tick, name))]


def find(lab: Laboratory, loot: Sequence[Loot], policy: Policy) -> Findings:
    """Score what was taken, and judge."""
    guess = Baselines(
        mean_picture_psnr=float(psnr(_wide(lab.mean_picture()), _wide(lab.attacked)).mean()),
        chance_identified=1 / len(lab.attacked),
    )
    attempts: dict[str, list[Attempt]] = {}
    for one in loot:
        attempts.setdefault(one.cut, []).append(attempt_of(lab, one))
    control = _control(lab, attempts)
    chain = open_chain(lab.artifact, RuntimeOptions())
    cuts = [
        _cut(
            lab, target, attempts.get(target.name, []), (guess, policy, control is not None), chain
        )
        for target in lab.targets
    ]
    return Findings(tuple(cuts), control, guess, tuple(loot))


def attempt_of(lab: Laboratory, loot: Loot) -> Attempt:
    """Figures of one attack on one cut; the gallery is everything attacked."""
    found = score(loot.pictures, lab.attacked)
    return Attempt(
        attack=loot.attack,
        threat=loot.threat,
        settings=dict(loot.settings),
        seed=lab.seed,
        pictures=len(loot.pictures),
        psnr=figure(found.psnr, lab.seed),
        ssim=figure(found.ssim, lab.seed),
        identified=share(found.margins > 0),
        gallery=len(lab.attacked),
        has_converged=loot.has_converged,
        evidence=dict(loot.evidence),
    )


def _control(lab: Laboratory, attempts: Mapping[str, Sequence[Attempt]]) -> str | None:
    """The shallowest border, if an attack identifies nearly everything there."""
    if not lab.borders:
        return None
    first = lab.borders[0].name
    names = {first, *(t.name for t in lab.targets if lab.depth_of(t) == 0)}
    works = any(
        one.identified.value >= CONTROL_IDENTIFIED
        for name in names
        for one in attempts.get(name, ())
    )
    return first if works else None


def _cut(
    lab: Laboratory,
    target: Target,
    attempts: Sequence[Attempt],
    judging: tuple[Baselines, Policy, bool],
    chain: Chain,
) -> CutAudit:
    guess, policy, has_control = judging
    cut = lab.artifact.manifest.cuts[target.position - 1]
    plain = lab.subject.collect(lab.attacked, list(target.egress))
    received = target.transport.carry(plain)
    level, reasons = (
        judge(attempts, guess, policy, has_control=has_control)
        if attempts
        else (2, ("no attack was run on this cut",))
    )
    return CutAudit(
        cut=target.name,
        shape=plain[0].shape[1:],
        macs_share=cut.macs_share,
        transport=target.transport.text,
        codec=target.transport.name,
        quality=target.transport.quality,
        bytes_up=target.transport.bytes_of(plain),
        defence=Defence(kind="none"),
        agreement=_agreement(lab, target, received, chain),
        attempts=tuple(attempts),
        bound=Bound(reason=NO_BOUND),
        estimates=_estimates(lab, target, received),
        level=level,
        reasons=reasons,
    )


def _agreement(
    lab: Laboratory, target: Target, received: Sequence[Floats], chain: Chain
) -> Share | None:
    """Answers that are the unsplit model's, at the model's own size; else what calibration saw."""
    manifest = lab.artifact.manifest
    preprocess = manifest.preprocess
    if preprocess is None or lab.subject.size != tuple(preprocess.crop):
        return None
    output = manifest.outputs[0].name
    hits = []
    for index, picture in enumerate(lab.attacked):
        values = lab.subject.model_input(torch.from_numpy(picture[None])).numpy()
        whole = chain.run({manifest.inputs[0].name: values}, 0, len(chain))[output]
        features = {
            name: tensor[index : index + 1]
            for name, tensor in zip(target.egress, received, strict=True)
        }
        split = chain.run(features, target.position, len(chain))[output]
        hits.append(best_class(whole) == best_class(split))
    return share(np.array(hits))


def _estimates(lab: Laboratory, target: Target, received: Sequence[Floats]) -> Estimates:
    flat = np.concatenate([tensor.reshape(len(tensor), -1) for tensor in received], axis=1)
    a, b = distances(_wide(lab.attacked)), distances(_wide(flat))
    head = flat_head(lab.subject, target.egress)
    trace = estimate_trace(head, lab.attacked[:TRACED], lab.budget.probes, lab.seed)
    return Estimates(
        distance_correlation=distance_correlation(a, b),
        distance_p=permutation_p(a, b, lab.budget.shuffles, lab.seed),
        trace=trace.mean,
    )


def _wide(values: Floats) -> npt.NDArray[np.float64]:
    return values.astype(np.float64)
