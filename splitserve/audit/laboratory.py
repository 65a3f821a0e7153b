"""One audit's material: the head, the pictures, the cuts and how their features travel."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from splitserve.artifact import Artifact
from splitserve.audit.budget import Budget
from splitserve.audit.images import procedural
from splitserve.audit.inverse import Border, Pairs, find_borders
from splitserve.audit.subject import Floats, Subject, Transport
from splitserve.errors import UsageError

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


class Laboratory:
    """What all attacks of one audit share.

    Args:
        artifact: verified.
        targets: cuts, the shallowest first.
        pictures: that are attacked, (n, 3, height, width), 0 to 1; the gallery too.
        auxiliary: pictures of the attacker's own, none of them attacked; may be empty.
        budget: to spend.
        seed: of everything drawn.

    Raises:
        UsageError: no cut, or too few pictures.
    """

    def __init__(
        self,
        artifact: Artifact,
        targets: Sequence[Target],
        pictures: tuple[Floats, Floats],
        budget: Budget,
        seed: int,
    ) -> None:
        self.pictures, self.auxiliary = pictures
        if not targets or len(self.pictures) <= budget.tuned + 1:
            raise UsageError(
                f"{len(targets)} cuts and {len(self.pictures)} pictures; at least one cut and"
                f" {budget.tuned + 2} pictures are needed"
            )
        self.artifact = artifact
        self.targets = list(targets)
        self.budget = budget
        self.seed = seed
        height, width = self.pictures.shape[2:]
        self.subject = Subject(artifact, targets[-1].position, (height, width))

    @property
    def attacked(self) -> Floats:
        """Pictures of the learned attacks."""
        return self.pictures[: self.budget.pictures]

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

    def depth_of(self, target: Target) -> int | None:
        """Number of the border at a cut, None where several tensors cross."""
        names = [border.name for border in self.borders]
        is_one = len(target.egress) == 1 and target.egress[0] in names
        return names.index(target.egress[0]) if is_one else None

    def pairs(self, pictures: Floats) -> Pairs:
        """What an inverse learns from: features as the head gives and as the receiver gets them."""
        names = [border.name for border in self.borders]
        before = self.subject.collect(pictures, names)
        received = list(before)
        for target in self.targets:
            depth = self.depth_of(target)
            if depth is not None:
                received[depth] = target.transport.carry([before[depth]])[0]
        return Pairs(pictures, before, received)

    def received(self, target: Target, pictures: Floats) -> list[Floats]:
        """Features at a cut as the receiver gets them."""
        return target.transport.carry(self.subject.collect(pictures, list(target.egress)))

    def mean_picture(self) -> Floats:
        """What a guess without features would show."""
        return np.broadcast_to(self.made.mean(axis=0, keepdims=True), self.attacked.shape)
