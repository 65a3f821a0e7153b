"""What the exits of a plan file's cuts are expected to answer early."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from splitserve.artifact import Exit, ExitRate, Manifest
from splitserve.errors import UsageError
from splitserve.exits import AGREEMENT, find_floor, positions_with_exit
from splitserve.plans import PlanOption


@dataclass(frozen=True, slots=True)
class Early:
    """One exit under a budget of uploads, by its calibration.

    Args:
        cut: where it is.
        upload: percent of the inputs that go on to the cloud: the budget, or more where the floor
            of agreement allows no fewer; 100 where no confidence keeps the floor.
        rate: the calibrated rate nearest to it, of those with as many uploads or more; None where
            there is none.
    """

    cut: str
    upload: float
    rate: ExitRate | None


def expect_early(manifest: Manifest, options: Sequence[PlanOption], budget: float) -> list[Early]:
    """Say what answers early at the cuts of some plans.

    Args:
        manifest: of the artifact.
        options: the plans.
        budget: percent of the inputs to upload.

    Raises:
        UsageError: the artifact has no exit at all.
    """
    with_exit = positions_with_exit(manifest, range(len(manifest.positions)))
    if not with_exit:
        raise UsageError(
            "--upload-budget needs exits, and the artifact has none; make them with: splitserve"
            " calibrate ARTIFACT --images DIR --exits CUT"
        )
    in_plans = positions_with_exit(manifest, [manifest.position(one.cut) for one in options])
    cuts = [manifest.cuts[position - 1] for position in in_plans]
    return [_expect(cut.name, cut.exit, budget) for cut in cuts if cut.exit]


def _expect(cut: str, facts: Exit, budget: float) -> Early:
    floor = find_floor(facts, AGREEMENT)
    upload = 100.0 if floor is None else max(budget, floor.upload)
    near = [rate for rate in facts.rates if rate.upload >= upload]
    return Early(cut, upload, near[-1] if near else None)


def early_document(found: Sequence[Early]) -> list[dict[str, Any]]:
    """As data."""
    return [
        {
            "cut": one.cut,
            "upload": one.upload,
            "rate": one.rate.model_dump() if one.rate else None,
        }
        for one in found
    ]


def say_early(found: Sequence[Early], budget: float | None) -> list[str]:
    """Put it into lines; none without a budget."""
    if budget is None:
        return []
    if not found:
        return [
            f"Early answers: none, for no plan of the file cuts at an exit (budget {budget:g})."
        ]
    return [f"Early answers at {one.cut}: {_say(one, budget)}." for one in found]


def _say(one: Early, budget: float) -> str:
    if budget >= 100:
        return "none, for the budget is everything"
    if one.rate is None:
        return f"next to none, for no lower share of uploads kept {AGREEMENT:g} % agreement"
    why = "the budget" if one.upload <= budget else f"{AGREEMENT:g} % agreement allows no fewer"
    seen = one.rate.early
    return (
        f"{100 - one.upload:.0f} % of the inputs, so {one.upload:.0f} % are uploaded ({why});"
        f" {seen.value:.1f} % ({seen.low:.1f}-{seen.high:.1f}) of early answers and"
        f" {one.rate.answers.value:.1f} % of all are the whole model's, as calibrated at"
        f" {one.rate.upload:g} % uploads"
    )
