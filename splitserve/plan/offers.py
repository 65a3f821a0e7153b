"""Two profiles become offers: every way to run the model, with what it costs on each side."""

from dataclasses import dataclass

from splitserve.artifact import INPUT, OUTPUT, Artifact, Manifest
from splitserve.errors import UsageError
from splitserve.plan.bound import Setup
from splitserve.plans import PlanOption
from splitserve.profile import Candidate, Profile, Timing

STEP_ANS = "step-ans"


@dataclass(frozen=True, slots=True)
class Offer:
    """One way to run the model.

    Args:
        option: what it costs.
        position: where it cuts.
        is_split: whether both sides compute a part of the network.
        edge_share: its head's time over the whole network's on the edge (f).
        cloud_share: its tail's time over the whole network's in the cloud.
    """

    option: PlanOption
    position: int
    is_split: bool
    edge_share: float = 0.0
    cloud_share: float = 0.0


def check_profile(profile: Profile, artifact: Artifact, flag: str) -> None:
    """Refuse a profile of another artifact.

    Raises:
        UsageError: it is; the message names the fix.
    """
    if profile.artifact_id != artifact.id.hex():
        raise UsageError(
            f"{flag}: taken of artifact {profile.artifact_id}, and {artifact.root} is"
            f" {artifact.id.hex()}; take it again: splitserve profile {artifact.root}"
        )


def make_setup(edge: Profile, cloud: Profile, *, is_native: bool) -> Setup:
    """What the bound needs to know of both machines.

    Args:
        edge: the device's profile.
        cloud: the cloud's.
        is_native: take the cloud's times without stretching.
    """
    tail = cloud.place(INPUT).tail
    return Setup(
        before_s=edge.picture.median_s + edge.normalise.median_s,
        edge_s=edge.place(OUTPUT).head.median_s,
        cloud_s=tail.native_median_s if is_native else tail.median_s,
    )


def make_offers(
    artifact: Artifact, edge: Profile, cloud: Profile, *, is_native: bool = False
) -> tuple[list[Offer], list[str]]:
    """Put the device's and the cloud's part of every candidate together.

    Args:
        artifact: that both profiles were taken of.
        edge: the device's profile.
        cloud: the cloud's.
        is_native: take the cloud's times without stretching.

    Returns:
        The offers, and the names of candidates that the cloud's profile lacks.
    """
    manifest = artifact.manifest
    setup = make_setup(edge, cloud, is_native=is_native)
    known = {candidate.key: candidate for candidate in cloud.candidates}
    offers, lacking = [], []
    for candidate in edge.candidates:
        other = known.get(candidate.key)
        if other is None:
            lacking.append(name_of(candidate))
            continue
        position = manifest.position(candidate.cut)
        there = other.cloud
        tail = cloud.place(candidate.cut).tail
        if is_native:
            there, tail = _native(there), _native(tail)
        head = edge.place(candidate.cut).head
        offers.append(
            Offer(
                option=_option(candidate, there, edge, manifest),
                position=position,
                is_split=0 < position <= len(manifest.cuts),
                edge_share=head.median_s / max(setup.edge_s, 1e-12),
                cloud_share=tail.median_s / max(setup.cloud_s, 1e-12),
            )
        )
    return offers, lacking


def name_of(candidate: Candidate) -> str:
    """What a plan is called."""
    if candidate.codec == "none":
        return "edge-only"
    where = "cloud" if candidate.cut == INPUT else candidate.cut
    quality = "" if candidate.quality is None else f" {candidate.quality:g}"
    return f"{where} {candidate.codec}{quality}"


def _option(candidate: Candidate, there: Timing, edge: Profile, manifest: Manifest) -> PlanOption:
    place = edge.place(candidate.cut)
    agreement = candidate.agreement.value if candidate.agreement else None
    return PlanOption(
        name=name_of(candidate),
        cut=candidate.cut,
        codec=candidate.codec,
        quality=candidate.quality,
        bytes_up=_bytes(candidate, edge, manifest),
        edge_s=candidate.edge.median_s,
        edge_p90_s=candidate.edge.p90_s,
        cloud_s=there.median_s,
        cloud_p90_s=there.p90_s,
        agreement=100.0 if candidate.is_lossless else agreement,
        memory_bytes=place.weights_bytes + place.features_bytes,
    )


def _bytes(candidate: Candidate, edge: Profile, manifest: Manifest) -> float:
    """Mean frame bytes: the profile's on pictures, the calibration's where it had only noise."""
    if edge.pictures.kind == "noise" and candidate.codec == STEP_ANS:
        calibration = manifest.cuts[manifest.position(candidate.cut) - 1].calibration
        for rate in calibration.rates if calibration else ():
            if rate.floor == candidate.quality:
                return rate.bytes_mean
    return candidate.bytes_mean


def _native(timing: Timing) -> Timing:
    fields = {"median_s": timing.native_median_s, "p90_s": timing.native_p90_s}
    return timing.model_copy(update=fields)
