"""The decision for one link: which plan is the fastest where, and why each other one lost."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from splitserve.artifact import Manifest
from splitserve.plan.bound import Setup, floor_s, ideal_split_s
from splitserve.plan.limits import Limits, refusal, refusal_here
from splitserve.plan.offers import Offer
from splitserve.plan.units import show_rate
from splitserve.plans import Link, PlanOption, Stretch, best_option, latency_s, lower_envelope

SLOWEST_BPS, FASTEST_BPS = 1e3, 1e10  # rates among which B* is sought


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one offer.

    Args:
        offer: the offer.
        reason: why it is not the answer; None for the answer itself.
        is_feasible: whether it keeps to all limits that do not depend on the link's rate.
        is_on_envelope: whether it is the fastest on some link.
    """

    offer: Offer
    reason: str | None
    is_feasible: bool
    is_on_envelope: bool


@dataclass(frozen=True, slots=True)
class Worth:
    """What splitting is worth at one rate.

    Args:
        rate_bps: the uplink.
        split: the best split there.
        extreme: the better of edge-only and the uploads.
        split_s: latency of the split.
        extreme_s: latency of the extreme.
        gain: extreme over split; below 1 a split loses.
        bound: the same with the best of these splits if its codec cost nothing.
        limit: the same with a split whose head and bytes cost nothing: no network passes it.
    """

    rate_bps: float
    split: Offer
    extreme: Offer
    split_s: float
    extreme_s: float
    gain: float
    bound: float
    limit: float

    @property
    def reached(self) -> float:
        """Share of the bound that the best split comes to."""
        return self.gain / self.bound


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer for a link.

    Args:
        link: that was planned for.
        answer: the fastest option that keeps to every limit here; None when there is none.
        verdicts: of every offer, the fastest on this link first.
        envelope: the fastest feasible option at every rate.
        here: what splitting is worth on this link; None without a feasible split or extreme.
        at_best: the same at B*, the rate where it is worth most.
    """

    link: Link
    answer: Offer | None
    verdicts: tuple[Verdict, ...]
    envelope: tuple[Stretch, ...]
    here: Worth | None
    at_best: Worth | None

    @property
    def does_split(self) -> bool:
        """Whether the answer is a split."""
        return self.answer is not None and self.answer.is_split


def decide(
    offers: Sequence[Offer], link: Link, limits: Limits, setup: Setup, manifest: Manifest
) -> Decision:
    """Choose for one link, and say why.

    Args:
        offers: at least one; their names differ.
        link: to plan for.
        limits: to keep to.
        setup: both machines, for the bound.
        manifest: for what it says of the cuts.
    """
    refused = {o.option.name: refusal(o.option, limits, manifest) for o in offers}
    feasible = [offer for offer in offers if not refused[offer.option.name]]
    options = [offer.option for offer in feasible]
    envelope = lower_envelope(options, link.rtt_s) if options else []
    late = {o.option.name: refusal_here(o.option, limits, link) for o in feasible}
    ready = [offer for offer in feasible if not late[offer.option.name]]
    answer = _fastest(ready, link) if ready else None
    members = {stretch.option for stretch in envelope}
    verdicts = [
        Verdict(
            offer,
            None
            if offer is answer
            else refused[offer.option.name]
            or late[offer.option.name]
            or _beaten(offer.option, options, envelope, link.rtt_s),
            is_feasible=not refused[offer.option.name],
            is_on_envelope=offer.option.name in members,
        )
        for offer in sorted(offers, key=lambda offer: latency_s(offer.option, link))
    ]
    return Decision(
        link=link,
        answer=answer,
        verdicts=tuple(verdicts),
        envelope=tuple(envelope),
        here=worth_at(feasible, link, setup),
        at_best=best_worth(feasible, link.rtt_s, setup),
    )


def worth_at(offers: Sequence[Offer], link: Link, setup: Setup) -> Worth | None:
    """What splitting is worth on a link; None without a split or without an extreme.

    The bound is max over the splits of min(edge-only, uploads) / (P + f Te + c Tc + R + 8 S / B),
    measured times above, codecs free of charge below.
    """
    splits = [offer for offer in offers if offer.is_split]
    extremes = [offer for offer in offers if not offer.is_split]
    if not splits or not extremes:
        return None
    split, extreme = _fastest(splits, link), _fastest(extremes, link)
    split_s, extreme_s = latency_s(split.option, link), latency_s(extreme.option, link)
    ideal_s = min(
        ideal_split_s(setup, link, o.edge_share, o.option.bytes_up, o.cloud_share) for o in splits
    )
    return Worth(
        rate_bps=link.uplink_bps,
        split=split,
        extreme=extreme,
        split_s=split_s,
        extreme_s=extreme_s,
        gain=extreme_s / split_s,
        bound=extreme_s / ideal_s,
        limit=extreme_s / floor_s(setup, link.rtt_s),
    )


def best_worth(offers: Sequence[Offer], rtt_s: float, setup: Setup) -> Worth | None:
    """Find B*, the rate where the best split gains most over the better extreme.

    Both are piecewise linear in x = 1 / B, and between two corners their ratio is monotone: the
    most is at a corner of either envelope, or at an end of the rates considered.
    """
    corners = {SLOWEST_BPS, FASTEST_BPS}
    for is_split in (True, False):
        options = [offer.option for offer in offers if offer.is_split == is_split]
        if options:
            starts = [stretch.from_bps for stretch in lower_envelope(options, rtt_s)]
            corners |= {rate for rate in starts if SLOWEST_BPS < rate < FASTEST_BPS}
    found = [worth_at(offers, Link(uplink_bps=rate, rtt_s=rtt_s), setup) for rate in corners]
    worths = [worth for worth in found if worth]
    return max(worths, key=lambda worth: (worth.gain, -worth.rate_bps), default=None)


def split_bands(decision: Decision) -> list[tuple[float, float | None]]:
    """Ranges of uplink rates in which a split is the fastest; None: without end."""
    splits = {v.offer.option.name for v in decision.verdicts if v.offer.is_split}
    bands: list[tuple[float, float | None]] = []
    for stretch in decision.envelope:
        if stretch.option not in splits:
            continue
        if bands and bands[-1][1] == stretch.from_bps:
            bands[-1] = (bands[-1][0], stretch.to_bps)
        else:
            bands.append((stretch.from_bps, stretch.to_bps))
    return bands


def _fastest(offers: Sequence[Offer], link: Link) -> Offer:
    best = best_option([offer.option for offer in offers], link)
    return next(offer for offer in offers if offer.option is best)


def _beaten(
    option: PlanOption, options: Sequence[PlanOption], envelope: Sequence[Stretch], rtt_s: float
) -> str:
    """Say which plans are faster, and where.

    Either one member of the envelope sends no more and costs no more besides. Or the gap to the
    envelope, convex in x = 1 / B, is smallest where two members meet: then one of them is faster
    on every slower link, the other on every faster one.
    """
    by_name = {one.name: one for one in options}
    for stretch in envelope:
        if stretch.option == option.name:
            return f"fastest {_between(stretch)}"
    for stretch in envelope:
        if _is_everywhere_slower(option, by_name[stretch.option], rtt_s):
            return f"dominated by {stretch.option} on every link"
    gaps = []
    for slow, fast in pairwise(envelope):
        link = Link(uplink_bps=fast.from_bps, rtt_s=rtt_s)
        gap_s = latency_s(option, link) - latency_s(by_name[fast.option], link)
        gaps.append((gap_s, slow, fast))
    _, slow, fast = min(gaps, key=lambda gap: gap[0])
    return (
        f"dominated by {slow.option} up to {show_rate(fast.from_bps)},"
        f" by {fast.option} from there on"
    )


def _is_everywhere_slower(option: PlanOption, other: PlanOption, rtt_s: float) -> bool:
    """Whether another plan sends no more and costs no more besides."""
    endless = Link(uplink_bps=1e30, rtt_s=rtt_s)
    is_cheaper = latency_s(other, endless) <= latency_s(option, endless)
    return other.bytes_up <= option.bytes_up and is_cheaper


def _between(stretch: Stretch) -> str:
    if stretch.to_bps is None:
        return "on every link" if not stretch.from_bps else f"from {show_rate(stretch.from_bps)} up"
    if not stretch.from_bps:
        return f"up to {show_rate(stretch.to_bps)}"
    return f"from {show_rate(stretch.from_bps)} to {show_rate(stretch.to_bps)}"
