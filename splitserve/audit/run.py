"""From a laboratory to an audit: attacks, figures, bounds, and a level for every cut."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from splitserve.artifact import Noise, Withdrawn
from splitserve.audit.answers import Answers
from splitserve.audit.attacks import ATTACKS, CONTROL, Loot
from splitserve.audit.document import Attempt, Baselines, Bound, CutAudit, Estimates
from splitserve.audit.fisher import Trace, error_floor, estimate_trace, flat_head
from splitserve.audit.laboratory import Laboratory, Target
from splitserve.audit.metrics import distance_correlation, distances, permutation_p, psnr, ssim
from splitserve.audit.policy import Beside, Policy, judge
from splitserve.audit.score import figure, score, share
from splitserve.audit.subject import Floats

CONTROL_IDENTIFIED = 0.9
TRACED = 16
NO_BOUND = "no bound: the cut is deterministic, no fresh noise is added"
NOISE_BOUND = "fresh Gaussian noise on every request; information estimated on {} pictures"

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


def attack_all(labs: Sequence[Laboratory], names: Sequence[str], tick: Tick) -> list[Loot]:
    """Run the attacks in their order, each behind every defence."""
    return [
        loot
        for name in names
        for lab in labs
        if lab.targets
        for loot in ATTACKS[name](lab, partial(tick, name))
    ]


class Judge:
    """Scores what was taken, and judges.

    Args:
        base: the laboratory without defences.
        policy: thresholds.
    """

    def __init__(self, base: Laboratory, policy: Policy) -> None:
        self._base, self._policy = base, policy
        self._answers = Answers(base)
        guess, true = _wide(base.mean_picture()), _wide(base.attacked)
        self.baselines = Baselines(
            mean_picture_psnr=float(psnr(guess, true).mean()),
            mean_picture_ssim=float(ssim(guess, true).mean()),
            chance_identified=1 / len(base.attacked),
        )

    def find(self, labs: Sequence[Laboratory], loot: Sequence[Loot]) -> Findings:
        """Score and judge every cut behind every defence."""
        attempts: dict[tuple[str, str], list[Attempt]] = {}
        for one in loot:
            attempts.setdefault((one.defence, one.cut), []).append(self.attempt(one))
        control = self._control(attempts)
        cuts = [
            self._cut(
                lab, target, attempts.get((target.asked, target.name), []), control is not None
            )
            for lab in labs
            for target in lab.targets
        ]
        cuts += [_withdrawn(lab, target) for lab in labs for target in lab.withdrawn]
        return Findings(tuple(cuts), control, self.baselines, tuple(loot))

    def attempt(self, loot: Loot) -> Attempt:
        """Figures of one attack on one cut; the gallery is everything attacked."""
        base = self._base
        found = score(loot.pictures, base.attacked)
        return Attempt(
            attack=loot.attack,
            threat=loot.threat,
            settings=dict(loot.settings),
            seed=base.seed,
            pictures=len(loot.pictures),
            error=figure(found.error, base.seed, worst="least"),
            psnr=figure(found.psnr, base.seed),
            ssim=figure(found.ssim, base.seed),
            identified=share(found.margins > 0),
            gallery=len(base.attacked),
            same_class=share(self._answers.same_class(loot.pictures)),
            has_converged=loot.has_converged,
            evidence=dict(loot.evidence),
        )

    def _control(self, attempts: Mapping[tuple[str, str], Sequence[Attempt]]) -> str | None:
        """The shallowest border, if an attack without a defence identifies nearly all there."""
        if not self._base.borders:
            return None
        first = self._base.borders[0].name
        works = any(
            one.identified.value >= CONTROL_IDENTIFIED for one in attempts.get((CONTROL, first), ())
        )
        return first if works else None

    def _cut(
        self, lab: Laboratory, target: Target, attempts: Sequence[Attempt], has_control: bool
    ) -> CutAudit:
        cut = lab.artifact.manifest.cuts[target.position - 1]
        plain = lab.subject.collect(lab.attacked, list(target.egress))
        hits, probe = self._answers.through(target)
        estimates = _estimates(lab, target, plain).model_copy(update={"probe": probe})
        level, reasons = judge(attempts, self.baselines, self._policy, Beside(has_control, probe))
        return CutAudit(
            cut=target.name,
            shape=plain[0].shape[1:],
            macs_share=cut.macs_share,
            convolutions=_convolutions(lab, target),
            transport=target.transport.text,
            codec=target.transport.name,
            quality=target.transport.quality,
            bytes_up=target.transport.bytes_of(plain),
            defence=target.transport.defence,
            agreement=share(hits),
            attempts=tuple(attempts),
            bound=_bound(lab, target),
            estimates=estimates,
            level=level,
            reasons=reasons,
        )


def _estimates(lab: Laboratory, target: Target, plain: Sequence[Floats]) -> Estimates:
    received = target.transport.carry(plain)
    flat = np.concatenate([tensor.reshape(len(tensor), -1) for tensor in received], axis=1)
    a, b = distances(_wide(lab.attacked)), distances(_wide(flat))
    return Estimates(
        distance_correlation=distance_correlation(a, b),
        distance_p=permutation_p(a, b, lab.budget.shuffles, lab.seed),
        trace=_trace(lab, target, None).mean,
    )


def _withdrawn(lab: Laboratory, target: Target) -> CutAudit:
    """Nothing crosses, so there is nothing to attack."""
    cut, count = lab.artifact.manifest.cuts[target.position - 1], len(lab.material.whole)
    return CutAudit(
        cut=target.name,
        shape=(),
        macs_share=cut.macs_share,
        convolutions=_convolutions(lab, target),
        transport="nothing",
        codec="none",
        bytes_up=0,
        defence=Withdrawn(),
        agreement=share(np.ones(count, bool)),
        attempts=(),
        bound=Bound(reason="nothing crosses"),
        level=1,
        reasons=("withdrawn: nothing crosses here",),
    )


def _convolutions(lab: Laboratory, target: Target) -> int:
    return max(lab.subject.graph.convolutions_before(name) for name in target.egress)


def _trace(lab: Laboratory, target: Target, units: Sequence[float] | None) -> Trace:
    head = flat_head(lab.subject, target.egress, units)
    return estimate_trace(head, lab.attacked[-TRACED:], lab.budget.probes, lab.seed)


def _bound(lab: Laboratory, target: Target) -> Bound:
    """What the noise guarantees; nothing without any."""
    transport = target.transport
    if not isinstance(transport.defence, Noise):
        return Bound(reason=NO_BOUND)
    dfil = _trace(lab, target, transport.defence.deviations)
    seen, variance = transport.observations, float(lab.attacked.var())
    return Bound(
        dfil=dfil.mean,
        least_error=error_floor(dfil.mean, seen),
        least_error_worst=error_floor(dfil.largest, seen),
        least_error_prior=error_floor(dfil.mean, seen, variance),
        reason=NOISE_BOUND.format(min(TRACED, len(lab.attacked))),
    )


def _wide(values: Floats) -> npt.NDArray[np.float64]:
    return values.astype(np.float64)
