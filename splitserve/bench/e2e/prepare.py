"""Before anything is timed: two halves of the pictures, profiles, and the planner's word."""

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splitserve.artifact import INPUT, Artifact
from splitserve.bench.e2e.figures import Setting
from splitserve.errors import MeasurementError, UsageError
from splitserve.picture import Window, list_pictures, read_picture, rewrite_picture
from splitserve.plan import Decision, Limits, Offer, decide, make_offers
from splitserve.plan.decide import best_worth
from splitserve.plan.limits import refusal
from splitserve.plan.offers import make_setup
from splitserve.plan.units import show_rate
from splitserve.plans import Link, latency_s
from splitserve.profile import Profile, read_profile
from splitserve.runtime import RuntimeOptions, open_chain

CUTS = 3
PICTURES_LEAST = 4
EMULATED_BPS = 1e4, 5e8  # a B* beyond is no crossing: one way is the fastest everywhere


@dataclass(frozen=True, slots=True)
class Place:
    """A link: rate in either direction, and round trip."""

    rate_bps: float
    rtt_s: float


@dataclass(frozen=True, slots=True)
class Wish:
    """What to compare.

    Args:
        places: links.
        crossings_s: round trips at which B* is measured too.
        cuts: to run statically; none for the fastest three.
        agreement: floor, percent.
        seed: of the resampling.
    """

    places: Sequence[Place]
    crossings_s: Sequence[float]
    cuts: Sequence[str]
    agreement: float
    seed: int


@dataclass(frozen=True, slots=True)
class Sheet:
    """What the planner says for one slowdown.

    Args:
        artifact: that was profiled.
        slowdown: of the device.
        offers: that keep to the limits on some link.
        cuts: to run statically.
        settings: one a link.
        decisions: the same.
    """

    artifact: Artifact
    slowdown: float
    offers: Sequence[Offer]
    cuts: Sequence[str]
    settings: Sequence[Setting]
    decisions: Sequence[Decision]

    def cheapest(self, role: str) -> Offer | None:
        """Edge-only, or the cloud-only offer with the fewest bytes."""
        found = [o for o in self.offers if o.option.is_local == (role == "edge")]
        if role == "cloud":
            found = [offer for offer in found if offer.option.cut == INPUT]
        return min(found, key=lambda offer: offer.option.bytes_up, default=None)


def halves(images: Path, folder: Path, seed: int, short_side: int | None) -> tuple[Path, Path]:
    """Put a folder's pictures into two new ones, at random.

    Args:
        images: the pictures.
        folder: for the two.
        seed: of the order.
        short_side: write them as uncompressed frames of this size, as a camera delivers them; None
            to take the files as they are.

    Raises:
        UsageError: too few pictures.
    """
    paths = list_pictures(images)
    if len(paths) < PICTURES_LEAST:
        raise UsageError(f"{images}: {len(paths)} pictures; at least {PICTURES_LEAST} are needed")
    order = np.random.default_rng(seed).permutation(len(paths))
    targets = folder / "profiled", folder / "measured"
    for target, half in zip(targets, np.array_split(order, 2), strict=True):
        target.mkdir()
        for index in half:
            path = paths[index].resolve()
            if short_side:
                rewrite_picture(path, target / f"{path.stem}.bmp", short_side, Window())
            else:
                (target / path.name).symlink_to(path)
    return targets


def classes(artifact: Artifact, paths: Sequence[Path]) -> list[tuple[Path, int]]:
    """The unsplit model's best class of every picture.

    Raises:
        UsageError: the model takes no pictures.
    """
    manifest = artifact.manifest
    if manifest.preprocess is None:
        raise UsageError(f"{artifact.root}: the model takes no pictures")
    chain = open_chain(artifact, RuntimeOptions())
    found = []
    for path in paths:
        values = {manifest.inputs[0].name: read_picture(path, manifest.preprocess)}
        outputs = chain.run(values, 0, len(chain))
        found.append((path, int(np.argmax(outputs[manifest.outputs[0].name][0]))))
    return found


def profiled(artifact: Artifact, images: Path, target: Path, flags: Sequence[str]) -> Profile:
    """Take a profile in a process of its own, as an operator does.

    Raises:
        MeasurementError: it failed.
    """
    words = ["profile", str(artifact.root), "--images", str(images), "-o", str(target), *flags]
    done = subprocess.run(
        [sys.executable, "-m", "splitserve.cli", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise MeasurementError(f"splitserve profile failed: {done.stderr.strip()[-300:]}")
    return read_profile(target)


def make_sheet(artifact: Artifact, edge: Profile, cloud: Profile, wish: Wish) -> Sheet:
    """Plan for every link, and for B* at every round trip asked for."""
    offers, _ = make_offers(artifact, edge, cloud)
    setup, limits = make_setup(edge, cloud, is_native=False), Limits(agreement=wish.agreement)
    manifest = artifact.manifest
    good = [offer for offer in offers if not refusal(offer.option, limits, manifest)]
    places = [(place, False) for place in wish.places]
    for rtt_s in wish.crossings_s:
        worth = best_worth(good, rtt_s, setup)
        if worth and EMULATED_BPS[0] <= worth.rate_bps <= EMULATED_BPS[1]:
            places.append((Place(worth.rate_bps, rtt_s), True))
    settings, decisions = [], []
    for place, is_crossing in places:
        reply_s = 8 * edge.reply_bytes / place.rate_bps
        link = Link(uplink_bps=place.rate_bps, rtt_s=place.rtt_s + reply_s)
        decision = decide(offers, link, limits, setup, manifest)
        if decision.answer is None:
            raise MeasurementError("no plan keeps to the agreement floor")
        decisions.append(decision)
        settings.append(
            Setting(
                name=_name(place, is_crossing=is_crossing),
                slowdown=edge.slowdown,
                link=link,
                rtt_s=place.rtt_s,
                is_crossing=is_crossing,
                planner=decision.answer.option.name,
                worth=decision.here,
                seed=wish.seed,
            )
        )
    links = [setting.link for setting in settings]
    cuts = wish.cuts or _fastest_cuts(good, links)
    return Sheet(artifact, edge.slowdown, good, cuts, settings, decisions)


def _name(place: Place, *, is_crossing: bool) -> str:
    where = f"{show_rate(place.rate_bps)}, {place.rtt_s * 1e3:g} ms"
    return f"B* {where}" if is_crossing else where


def _fastest_cuts(offers: Sequence[Offer], links: Sequence[Link]) -> list[str]:
    """The cuts whose best rate is the fastest in the geometric mean over the links."""
    scores: dict[str, float] = {}
    for offer in offers:
        if offer.is_split:
            score = sum(math.log(latency_s(offer.option, link)) for link in links)
            scores[offer.option.cut] = min(score, scores.get(offer.option.cut, math.inf))
    return sorted(scores, key=scores.__getitem__)[:CUTS]
