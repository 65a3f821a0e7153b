"""The attacks, each with who could run it. To add one: a function in `ATTACKS` (docs/audit.md)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from splitserve.audit.device import to_array, to_tensor
from splitserve.audit.document import Threat
from splitserve.audit.images import gaussian
from splitserve.audit.inverse import Inverse, Pairs, Recipe, train_inverse
from splitserve.audit.laboratory import MADE_SEED, Laboratory, Lesson, Target
from splitserve.audit.optimise import WEIGHTS, Prey, optimise, sweep
from splitserve.audit.score import score
from splitserve.audit.shadow import ShadowRecipe, tail_of, train_shadow, weights_kept
from splitserve.audit.subject import Floats, Subject
from splitserve.audit.synthesis import Synthesis, synthesise

CONTROL = "control"  # in the place of a defence: the positive control is no cut's result
FLAT = 0.02  # a loss that fell by less than this share over the last tenth has converged
MATCHED = 10  # one in so many made pictures is matched to the model's batch norms
CLOSED = 0.5  # share of the variance: a block of which less is found counts as not inverted
NEAR = 0.05  # of the features' variance: an optimisation that came so near has converged

Tick = Callable[[], None]
Evidence = Mapping[str, float | list[float] | list[list[float]]]


@dataclass(frozen=True, slots=True)
class Loot:
    """What an attack on one cut brought.

    Args:
        cut: name.
        defence: in front of the cut, as it was asked for.
        attack: name.
        threat: who could run it.
        pictures: reconstructions of the first of the attacked pictures, 0 to 1.
        settings: that a repetition needs.
        has_converged: whether more steps would have brought little.
        evidence: for that.
    """

    cut: str
    defence: str
    attack: str
    threat: Threat
    pictures: Floats
    settings: Mapping[str, float | int | str]
    has_converged: bool
    evidence: Evidence = field(default_factory=dict)


def _learned(
    lab: Laboratory, pictures: Floats, facts: tuple[str, Threat], recipe: Recipe, tick: Tick
) -> list[Loot]:
    """Learn the inverse of every depth from some pictures, and attack every cut with it.

    Behind a defence two attackers try: one who does not know it, and one who learned through it.
    The second learns each defended cut by itself, for inside the head the features are whole.
    """
    name, threat = facts
    plain = lab.plain or lab
    if not plain.borders:
        return []
    is_first = name not in plain.lessons
    whole = _lesson(lab, None, (name, pictures), recipe, tick)
    loot = []
    if is_first:
        (features,) = lab.subject.collect(lab.attacked, list(plain.control.egress))
        loot.append(replace(_loot(plain.control, name, threat, features, whole), defence=CONTROL))
    for target in lab.targets:
        if plain.depth_of(target) is None:
            continue
        (received,) = lab.received(target, lab.attacked)
        if target.transport.defence is None:
            loot.append(_loot(target, name, threat, received, whole))
            continue
        lesson = _lesson(lab, target, (name, pictures), recipe, tick)
        unaware = threat.model_copy(update={"adapts": False})
        loot.append(_loot(target, name, threat, received, lesson))
        loot.append(_loot(target, name, unaware, received, whole))
    return loot


def _lesson(
    lab: Laboratory, target: Target | None, facts: tuple[str, Floats], recipe: Recipe, tick: Tick
) -> Lesson:
    """What the attacker learns without defences, or of one target behind its own; learned once."""
    plain, (name, pictures) = lab.plain or lab, facts
    kept, key = plain.lessons, name
    depth: int | None = len(plain.borders) - 1
    if target is not None:
        kept, key, depth = lab.lessons, f"{name}, {target.name}", plain.depth_of(target)
    if key not in kept:
        inverse = Inverse(plain.borders[: (depth or 0) + 1], (3, *lab.subject.size), lab.seed)
        own = replace(recipe, is_single=target is not None)
        pairs = plain.pairs(pictures, target)
        losses = train_inverse(lab.subject, inverse, pairs, own, tick)
        explained = _explained(inverse, plain.pairs(lab.attacked, target))
        settings: dict[str, float | int | str] = {
            "steps": recipe.steps,
            "learned_on": len(pictures),
            "cycle": recipe.cycle,
            "blocks not inverted": _closed(inverse, explained),
        }
        kept[key] = Lesson(inverse, losses, explained, settings)
    return kept[key]


@torch.no_grad()
def _explained(inverse: Inverse, seen: Pairs) -> list[float]:
    """Share of the variance found, block by block, as if those behind were inverted perfectly."""
    inverse.eval()
    shares = []
    for block, received, true in zip(
        inverse.blocks, seen.received, (seen.pictures, *seen.before[:-1]), strict=True
    ):
        found = to_array(block(to_tensor(received))).reshape(true.shape)
        error = float(np.square(found - true, dtype=np.float64).mean())
        shares.append(1 - error / (float(true.var(dtype=np.float64)) + 1e-12))
    return shares


def _closed(inverse: Inverse, explained: Sequence[float]) -> str:
    """Blocks whose input could not be found, for the report."""
    pairs = zip(inverse.borders, explained, strict=True)
    return ", ".join(border.name for border, share in pairs if share < CLOSED) or "none"


def _loot(target: Target, name: str, threat: Threat, received: Floats, lesson: Lesson) -> Loot:
    losses, names = lesson.losses, [border.name for border in lesson.inverse.borders]
    tenth = max(1, len(losses) // 10)
    last, before = np.mean(losses[-tenth:]), np.mean(losses[-2 * tenth : -tenth])
    marks = [float(np.mean(part)) for part in np.array_split(losses, min(20, len(losses)))]
    return Loot(
        target.name,
        target.asked,
        name,
        threat.model_copy(update={"observations": target.transport.observations}),
        lesson.inverse.invert(received, names.index(target.egress[0])),
        lesson.settings,
        bool(before - last <= FLAT * before),
        {"losses": marks, "explained": list(lesson.explained)},
    )


def data_free(lab: Laboratory, tick: Tick) -> list[Loot]:
    """Divide and conquer on pictures that nobody took: weights, no data.

    Where the model has kept its batch norms, a tenth of the pictures is matched to them.
    """
    threat = Threat(knowledge="weights", data="none")
    recipe = Recipe(steps=lab.budget.steps, seed=lab.seed)
    pictures = np.concatenate([_matched(lab.plain or lab, tick), lab.made])[: len(lab.made)]
    return _learned(lab, pictures, ("inverse, data-free", threat), recipe, tick)


def _matched(lab: Laboratory, tick: Tick) -> Floats:
    """Pictures that fit the model's batch norms; none where it has none. Made once."""
    if lab.matched is None:
        start, whole = lab.made[: len(lab.made) // MATCHED], lab.whole_model
        how = Synthesis(seed=lab.seed)
        lab.matched = start[:0] if whole is None else synthesise(whole, start, how, tick)
    return lab.matched


def data_free_noise(lab: Laboratory, tick: Tick) -> list[Loot]:
    """The same on Gaussian noise: the ablation of the picture source."""
    threat = Threat(knowledge="weights", data="none")
    height, width = lab.subject.size
    noise = gaussian(lab.budget.made, height, width, MADE_SEED + lab.seed)
    recipe = Recipe(steps=lab.budget.steps, seed=lab.seed)
    return _learned(lab, noise, ("inverse, noise pictures", threat), recipe, tick)


def auxiliary(lab: Laboratory, tick: Tick) -> list[Loot]:
    """Divide and conquer on pictures of the attacker's own; nothing without any."""
    if not len(lab.auxiliary):
        return []
    threat = Threat(knowledge="weights", data="auxiliary")
    recipe = Recipe(steps=lab.budget.steps, seed=lab.seed)
    return _learned(lab, lab.auxiliary, ("inverse, auxiliary pictures", threat), recipe, tick)


def queries(lab: Laboratory, tick: Tick) -> list[Loot]:
    """A decoder learned from answers to queries: no weights, no gradients, no block borders."""
    threat = Threat(knowledge="queries", data="auxiliary" if len(lab.auxiliary) else "none")
    asked = lab.auxiliary if len(lab.auxiliary) else lab.made
    loot = []
    for target in lab.targets:
        depth = lab.depth_of(target)
        if depth is None:
            continue
        received = lab.received(target, asked)
        inverse = Inverse([lab.borders[depth]], (3, *lab.subject.size), lab.seed)
        recipe = Recipe(steps=lab.budget.steps, seed=lab.seed, cycle=0.0, chain_share=0.0)
        losses = train_inverse(lab.subject, inverse, Pairs(asked, received, received), recipe, tick)
        lesson = Lesson(inverse, losses, (), {"steps": recipe.steps, "queries": len(asked)})
        (seen,) = lab.received(target, lab.attacked)
        loot.append(_loot(target, "decoder, queries", threat, seen, lesson))
    return loot


def white_box(lab: Laboratory, tick: Tick) -> list[Loot]:
    """Optimise the pictures themselves: weights, no data."""
    threat = Threat(knowledge="weights", data="none")
    return [
        _optimised(lab, target, ("optimisation", threat), lab.subject, tick)
        for target in lab.targets
    ]


def query_free(lab: Laboratory, tick: Tick) -> list[Loot]:
    """Optimise against a head of the attacker's own making: architecture and tail, no queries.

    Nothing without labelled pictures, or at a size that the tail was not made for.
    """
    if not can_shadow(lab):
        return []
    threat = Threat(knowledge="architecture", data="auxiliary")
    labels = np.array(lab.material.labels, np.int64)
    loot = []
    for target in lab.targets:
        recipe = ShadowRecipe(steps=lab.budget.steps, seed=lab.seed)
        tail = tail_of(lab.artifact, target.position)
        shadow = train_shadow(lab.subject, tail, (lab.auxiliary, labels), recipe, tick)
        found = _optimised(lab, target, ("shadow head", threat), shadow, tick)
        settings = {**found.settings, "shadow steps": recipe.steps, "learned_on": len(labels)}
        evidence = {**found.evidence, "accuracy": shadow.accuracy}
        loot.append(replace(found, settings=settings, evidence=evidence))
    return loot


def can_shadow(lab: Laboratory) -> bool:
    """Whether the query-free attack has what it needs."""
    is_whole = tuple(lab.subject.size) == tuple(lab.subject.preprocess.crop)
    return is_whole and bool(lab.material.labels) and not weights_kept(lab.subject.graph)


def _optimised(
    lab: Laboratory, target: Target, facts: tuple[str, Threat], head: Subject, tick: Tick
) -> Loot:
    """Tune the weight of the total variation on other pictures, then attack.

    Who has no head to ask tunes on what the head of his own making gives for his own pictures.

    Args:
        lab: the laboratory.
        target: the cut.
        facts: name of the attack, and who could run it.
        head: what the attacker takes for the head.
        tick: called after each step.
    """
    name, threat = facts
    steps, names = lab.budget.optimise_steps, list(target.egress)
    known = head.behind(target.transport.defence, names)
    own = lab.tuning if head is lab.subject else lab.auxiliary[: len(lab.tuning)]
    tuned = sweep(
        known,
        own,
        Prey(target.egress, target.transport.carry(head.collect(own, names))),
        lambda seen, true: float(score(seen, true).ssim.mean()),
        max(1, steps // 2),
        tick,
    )
    weight = max(tuned, key=lambda one: one[1])[0]
    prey = Prey(target.egress, lab.received(target, lab.optimised))
    found = optimise(known, prey, weight, steps, tick)
    return Loot(
        target.name,
        target.asked,
        name,
        threat.model_copy(update={"observations": target.transport.observations}),
        found.pictures,
        {"steps": steps, "variation": weight},
        bool(np.median(found.distance) < NEAR),
        {
            "sweep": [list(one) for one in tuned],
            "distance": [float(value) for value in found.distance],
        },
    )


Attack = Callable[[Laboratory, Tick], list[Loot]]
ATTACKS: dict[str, Attack] = {
    "data-free": data_free,
    "noise": data_free_noise,
    "auxiliary": auxiliary,
    "queries": queries,
    "shadow": query_free,
    "optimise": white_box,
}


def steps_of(name: str, labs: Sequence[Laboratory]) -> int:
    """How often an attack ticks, for the progress bar."""
    budget = labs[0].budget
    cuts = sum(len(lab.targets) for lab in labs)
    if name in ("optimise", "shadow"):
        own = budget.steps if name == "shadow" else 0
        tuning = len(WEIGHTS) * max(1, budget.optimise_steps // 2)
        return cuts * (own + budget.optimise_steps + tuning)
    if name == "queries":
        return budget.steps * cuts
    own = 0
    if name == "data-free" and (labs[0].plain or labs[0]).whole_model is not None:
        own = Synthesis().steps * math.ceil(budget.made // MATCHED / Synthesis().batch)
    defended = sum(t.transport.defence is not None for lab in labs for t in lab.targets)
    return own + budget.steps * (1 + defended)
