"""One audit's material: the head, the pictures, the cuts and how their features travel."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx
from torch import Tensor

from splitserve.artifact import Artifact, Defence, Manifest, Withdrawn
from splitserve.audit.budget import Budget
from splitserve.audit.images import procedural
from splitserve.audit.inverse import Border, Inverse, Pairs, find_borders
from splitserve.audit.shadow import class_scores
from splitserve.audit.subject import Floats, Subject, Transport
from splitserve.audit.synthesis import Whole, find_norms
from splitserve.audit.torch_graph import TorchGraph
from splitserve.errors import GraphError, UsageError

PROBED = 8
MADE_SEED = 1000  # far from those of weights and batches


@dataclass(frozen=True, slots=True)
class Target:
    """One cut that is audited.

    Args:
        position: of the cut.
        name: of the cut.
        egress: tensors that cross.
        transport: what the receiver sees them through.
    """

    position: int
    name: str
    egress: tuple[str, ...]
    transport: Transport

    @property
    def asked(self) -> str:
        """The defence for people."""
        return self.transport.defence.asked if self.transport.defence else "none"


def target_of(artifact: Artifact, position: int, transport: Transport) -> Target:
    """A cut by its position."""
    manifest = artifact.manifest
    egress = tuple(spec.name for spec in manifest.egress(position))
    return Target(position, manifest.positions[position], egress, transport)


def named_cuts(manifest: Manifest, names: Sequence[str]) -> list[str]:
    """Cuts that somebody names; every one for `all`.

    Raises:
        UsageError: no such cut.
    """
    cuts = [cut.name for cut in manifest.cuts]
    wanted = cuts if list(names) == ["all"] else list(names)
    for name in wanted:
        if name not in cuts:
            raise UsageError(f"--cut: no cut {name!r} here; there are: {', '.join(cuts)}")
    return wanted


@dataclass(frozen=True, slots=True)
class Attribute:
    """Something that the features ought not to say: a name, and its value for each picture."""

    name: str
    values: Sequence[str]


@dataclass(frozen=True, slots=True)
class Material:
    """Pictures of an audit.

    Args:
        pictures: that are attacked, (n, 3, height, width), 0 to 1; the gallery too. The last ones
            are for tuning.
        auxiliary: of the attacker's own, none of them attacked; may be empty.
        labels: class of each auxiliary picture; empty where nobody said.
        whole: the first of the pictures at the model's own size, for what the model answers.
        attribute: declared as sensitive; None where nobody declared one.
    """

    pictures: Floats
    auxiliary: Floats
    whole: Floats
    labels: Sequence[int] = ()
    attribute: Attribute | None = None


@dataclass(frozen=True, slots=True)
class Lesson:
    """What an attacker has learned.

    Args:
        inverse: of every depth.
        losses: of each step.
        explained: share of the variance before each block that its inverse finds behind it, on the
            attacked pictures.
        settings: that a repetition needs.
    """

    inverse: Inverse
    losses: Sequence[float]
    explained: Sequence[float]
    settings: Mapping[str, float | int | str]


class Laboratory:
    """What all attacks of one audit share.

    Args:
        artifact: verified.
        targets: cuts, the shallowest first.
        material: the pictures.
        budget: to spend.
        seed: of everything drawn.

    Raises:
        UsageError: no cut, or too few pictures.
    """

    def __init__(
        self,
        artifact: Artifact,
        targets: Sequence[Target],
        material: Material,
        budget: Budget,
        seed: int,
    ) -> None:
        self.material = material
        self.pictures, self.auxiliary = material.pictures, material.auxiliary
        if not targets or len(self.pictures) <= budget.tuned + 1:
            raise UsageError(
                f"{len(targets)} cuts and {len(self.pictures)} pictures; at least one cut and"
                f" {budget.tuned + 2} pictures are needed"
            )
        self.artifact = artifact
        self.targets = list(targets)
        self.withdrawn: list[Target] = []
        self.plain: Laboratory | None = None
        self.lessons: dict[str, Lesson] = {}
        self.matched: Floats | None = None
        self.budget = budget
        self.seed = seed
        height, width = self.pictures.shape[2:]
        self.subject = Subject(artifact, targets[-1].position, (height, width))

    def behind(self, defences: Sequence[Defence | None]) -> "Laboratory":
        """The same laboratory with a defence at each cut; this one is what a naive attacker knows.

        Cuts that are withdrawn are no targets.

        Args:
            defences: one a cut.
        """
        other = copy.copy(self)
        other.targets = [
            replace(target, transport=replace(target.transport, defence=defence))
            for target, defence in zip(self.targets, defences, strict=True)
            if not isinstance(defence, Withdrawn)
        ]
        other.withdrawn = [
            target
            for target, defence in zip(self.targets, defences, strict=True)
            if isinstance(defence, Withdrawn)
        ]
        other.lessons, other.plain = {}, self
        return other

    def leave_out(self, others: Sequence["Laboratory"]) -> None:
        """Drop the cuts that others attack behind a defence of the same name."""
        known = {(target.asked, target.name) for lab in others for target in lab.targets}
        self.targets = [one for one in self.targets if (one.asked, one.name) not in known]

    @property
    def attacked(self) -> Floats:
        """Pictures of the learned attacks."""
        return self.pictures[: self.budget.pictures]

    @property
    def control(self) -> Target:
        """The shallowest block, without codec and defence: where the attacks have to work."""
        name = self.borders[0].name
        return Target(0, name, (name,), Transport(None, "none"))

    @property
    def tuning(self) -> Floats:
        """The last pictures: for tuning, and never scored."""
        return self.pictures[-self.budget.tuned :]

    @property
    def optimised(self) -> Floats:
        """Pictures of the attacks that optimise."""
        most = len(self.pictures) - self.budget.tuned
        return self.pictures[: min(self.budget.optimised, most)]

    @cached_property
    def borders(self) -> list[Border]:
        """Borders of the head's blocks, the cuts of one tensor among them."""
        must = [target.egress[0] for target in self.targets if len(target.egress) == 1]
        return find_borders(self.subject, self.pictures[:PROBED], must) if must else []

    @cached_property
    def made(self) -> Floats:
        """Pictures that nobody took."""
        height, width = self.pictures.shape[2:]
        return procedural(self.budget.made, height, width, MADE_SEED + self.seed)

    @cached_property
    def whole_model(self) -> Whole | None:
        """The whole model, where it still has batch norms and the pictures are of its own size."""
        manifest, preprocess = self.artifact.manifest, self.subject.preprocess
        parts = [
            onnx.load_model_from_string(self.artifact.read_file(stored))
            for stored in manifest.segments
        ]
        norms, output = find_norms(parts), manifest.outputs[0]
        is_whole = tuple(self.subject.size) == tuple(preprocess.crop)
        if not norms or not is_whole or len(output.shape) != 2:
            return None
        try:
            graph, head = TorchGraph(parts), self.subject
        except GraphError:
            return None  # the tail has what torch does not run here; the audit needs the head only

        def see(pictures: Tensor, names: Sequence[str]) -> Sequence[Tensor]:
            found = graph({head.input_name: head.model_input(pictures)}, names)
            pairs = zip(names, found, strict=True)
            return [class_scores(one) if name == output.name else one for name, one in pairs]

        return Whole(see, output.name, norms)

    def depth_of(self, target: Target) -> int | None:
        """Number of the border at a cut, None where several tensors cross."""
        names = [border.name for border in self.borders]
        is_one = len(target.egress) == 1 and target.egress[0] in names
        return names.index(target.egress[0]) if is_one else None

    def pairs(self, pictures: Floats, target: Target | None = None) -> Pairs:
        """What an inverse learns from: features as the head gives and as the receiver gets them.

        Args:
            pictures: (n, 3, height, width).
            target: the one cut that is received, and the last border; None for every cut.
        """
        last = self.depth_of(target) if target else None
        borders = self.borders if last is None else self.borders[: last + 1]
        before = self.subject.collect(pictures, [border.name for border in borders])
        received = list(before)
        for one in [target] if target else self.targets:
            depth = self.depth_of(one)
            if depth is not None:
                received[depth] = one.transport.carry([before[depth]])[0]
        return Pairs(pictures, before, received)

    def received(self, target: Target, pictures: Floats) -> list[Floats]:
        """Features at a cut as the receiver gets them."""
        return target.transport.carry(self.subject.collect(pictures, list(target.egress)))

    def mean_picture(self) -> Floats:
        """What a guess without features would show."""
        return np.broadcast_to(self.made.mean(axis=0, keepdims=True), self.attacked.shape)
