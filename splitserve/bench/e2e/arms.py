"""The arms of a comparison: the two extremes, every static cut, and the adaptive agent."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from splitserve.artifact import INPUT, Artifact
from splitserve.errors import MeasurementError
from splitserve.plan import Decision, Offer
from splitserve.plans import Link, PlanFile, lower_envelope

UNCOMPRESSED = "affine-u8"  # at the input: the picture, a byte a value, as papers upload it
ADAPTIVE = "adaptive"


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to run the model.

    Args:
        name: of its plan, or `adaptive`.
        role: `edge`, `cloud`, `split` or `adaptive`.
        offer: what the planner knows of it; None where the plan changes.
    """

    name: str
    role: str
    offer: Offer | None = None

    def flags(self, plans: Path) -> list[str]:
        """What makes an agent run it.

        Args:
            plans: the plan file of the adaptive agent.
        """
        if self.offer is None:
            return ["--plan", str(plans)]
        option = self.offer.option
        words = ["--cut", option.cut]
        if not option.is_local:
            words += ["--codec", option.codec]
        if option.quality is not None:
            words += ["--quality", f"{option.quality:g}"]
        return words


def choose_arms(
    offers: Sequence[Offer], decisions: Sequence[Decision], cuts: Sequence[str]
) -> list[Arm]:
    """Edge-only, the cheapest upload of each format, each cut, what the planner chose, adaptive.

    Args:
        offers: that keep to the limits on some link.
        decisions: of the planner, one a link.
        cuts: to run statically, by name.

    Raises:
        MeasurementError: nothing runs on the device alone.
    """
    chosen = [offer for offer in offers if offer.option.is_local]
    if not chosen:
        raise MeasurementError("no plan runs on the device alone")
    for codec in ("jpeg", "webp", UNCOMPRESSED):
        here = [o for o in offers if o.option.cut == INPUT and o.option.codec == codec]
        chosen += _fewest(here)
    for name in cuts:
        chosen += _fewest([o for o in offers if o.option.cut == name and o.is_split])
    chosen += [decision.answer for decision in decisions if decision.answer]
    by_name = {offer.option.name: Arm(offer.option.name, _role(offer), offer) for offer in chosen}
    return [*by_name.values(), Arm(ADAPTIVE, ADAPTIVE)]


def _role(offer: Offer) -> str:
    if offer.option.is_local:
        return "edge"
    return "split" if offer.is_split else "cloud"


def _fewest(offers: Sequence[Offer]) -> list[Offer]:
    """The offer with the fewest bytes, if there is one."""
    return sorted(offers, key=lambda offer: offer.option.bytes_up)[:1]


def plan_file(arms: Sequence[Arm], links: Sequence[Link], artifact: Artifact) -> PlanFile:
    """Plans for an agent that meets all these links: members of each one's envelope.

    Args:
        arms: whose candidates to choose from.
        links: that it may meet.
        artifact: to run.
    """
    options = [arm.offer.option for arm in arms if arm.offer]
    names = {s.option for link in links for s in lower_envelope(options, link.rtt_s)}
    kept = [option for option in options if option.name in names or option.is_local]
    return PlanFile(
        artifact_id=artifact.id.hex(),
        options=tuple(sorted(kept, key=lambda option: option.bytes_up)),
        expected=links[0],
    )
