"""Offers made up for tests of the planner, and a manifest-free way to decide among them."""

from collections.abc import Sequence
from pathlib import Path

from splitserve.artifact import Artifact, Estimate, Manifest, load_artifact
from splitserve.plan import Decision, Limits, Offer, Setup, decide
from splitserve.plans import Link, PlanOption
from splitserve.profile import Candidate, Machine, Pictures, Place, Profile, Timing

END = 3  # position of the output of made-up offers
SETUP = Setup(before_s=0.002, edge_s=0.12, cloud_s=0.03)


def offer(
    name: str,
    position: int,
    bytes_up: float,
    edge_s: float,
    cloud_s: float,
    agreement: float | None = 99.0,
    cut: str | None = None,
    codec_s: float = 0.0,
) -> Offer:
    """An offer; `codec_s` of either side's time are the codec's, the rest the network's."""
    option = PlanOption(
        name=name,
        cut=cut or {0: "input", END: "output"}.get(position, f"cut{position}"),
        codec="none" if position == END else "x",
        bytes_up=bytes_up,
        edge_s=edge_s,
        edge_p90_s=edge_s * 1.1,
        cloud_s=cloud_s,
        cloud_p90_s=cloud_s * 1.1,
        agreement=agreement,
        memory_bytes=1_000_000 * position,
    )
    share = max(0.0, edge_s - SETUP.before_s - codec_s) / SETUP.edge_s
    rest = max(0.0, cloud_s - codec_s) / SETUP.cloud_s
    return Offer(option, position, 0 < position < END, share, rest)


EDGE = offer("edge-only", END, 0, 0.122, 0.0, 100.0)
JPEG = offer("cloud jpeg", 0, 15_300, 0.004, 0.032, 98.5)
SPLIT = offer("split", 1, 3_800, 0.008, 0.030, 98.2, codec_s=0.002)


def decide_among(
    offers: Sequence[Offer], link: Link, artifact: Path | Manifest, limits: Limits | None = None
) -> Decision:
    manifest = artifact if isinstance(artifact, Manifest) else load_artifact(artifact).manifest
    return decide(offers, link, limits or Limits(), SETUP, manifest)


def timing(seconds: float, slowdown: float = 1.0) -> Timing:
    return Timing(
        median_s=seconds * slowdown, p90_s=1.1 * seconds * slowdown,
        native_median_s=seconds, native_p90_s=1.1 * seconds, count=10,
    )  # fmt: skip


def made_up_profile(artifact: Artifact, whole_s: float, slowdown: float = 1.0) -> Profile:
    """A profile in which time is proportional to multiply-adds and codecs take a microsecond.

    JPEG at quality 90 sends 5 kB, WebP at 80 sends 4 kB and loses answers, affine-u8 a byte per
    element.
    """
    manifest = artifact.manifest
    shares = [0.0, *(cut.macs_share for cut in manifest.cuts), 1.0]
    picture, normalise, codec = 2e-4, 1e-4, 1e-6

    def scaled(seconds: float) -> Timing:
        return timing(seconds, slowdown)

    places = [
        Place(
            name=name, macs_share=share, head=scaled(share * whole_s),
            tail=scaled((1 - share) * whole_s), weights_bytes=round(1e6 * share),
            features_bytes=12_288,
        )
        for name, share in zip(manifest.positions, shares, strict=True)
    ]  # fmt: skip

    def candidate(cut: str, name: str, quality: float | None, size: float, agreed: float):
        share = shares[manifest.position(cut)]
        is_local = name == "none"
        return Candidate(
            cut=cut, codec=name, quality=quality, encode=scaled(codec), decode=scaled(codec),
            edge=scaled(picture + normalise + share * whole_s + (0 if is_local else codec)),
            cloud=scaled(0 if is_local else (1 - share) * whole_s + codec),
            bytes_mean=size, bytes_p95=size,
            agreement=None if is_local else Estimate(value=agreed, low=0, high=100),
            agreement_on=100, is_lossless=is_local,
        )  # fmt: skip

    candidates = [
        candidate("output", "none", None, 0, 100),
        candidate("input", "jpeg", 90, 5_000, 99),
        candidate("input", "webp", 80, 4_000, 95.3),
    ]
    for cut in manifest.cuts:
        elements = sum(spec.elements() for spec in cut.egress)
        candidates.append(candidate(cut.name, "affine-u8", None, 100 + elements, 99.5))
        for rate in cut.calibration.rates if cut.calibration else ():
            size, agreed = rate.bytes_mean, rate.agreement.value
            candidates.append(candidate(cut.name, "step-ans", rate.floor, size, agreed))
    return Profile(
        artifact_id=artifact.id.hex(), model=manifest.model.name,
        machine=Machine(system="none", processor="made up", cores=1), threads=1, providers=("CPU",),
        tools={}, slowdown=slowdown, slowdown_measured=slowdown, rounds=10, seed=0,
        pictures=Pictures(kind="files", count=10, sha256="0"), picture=scaled(picture),
        normalise=scaled(normalise), places=tuple(places), candidates=tuple(candidates),
        reply_bytes=200,
    )  # fmt: skip
