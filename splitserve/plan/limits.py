"""What a plan must keep to, and the words in which it is refused."""

import math
from dataclasses import dataclass

from splitserve.artifact import INPUT, Leakage, Manifest
from splitserve.plan.units import show_ms, show_rate
from splitserve.plans import Link, PlanOption, latency_s


@dataclass(frozen=True, slots=True)
class Powers:
    """Watts of the device, and the most a request may take of them.

    Args:
        compute_w: while it computes.
        radio_w: while it sends.
        ceiling_j: joules per request; None without a limit.
    """

    compute_w: float
    radio_w: float
    ceiling_j: float | None = None

    def energy_j(self, option: PlanOption, link: Link) -> float:
        """Joules of one request on the device: compute, then radio; waiting is not counted."""
        transfer_s = 8 * option.bytes_up / link.uplink_bps
        return self.compute_w * option.edge_s + self.radio_w * transfer_s


@dataclass(frozen=True, slots=True)
class Limits:
    """What a plan must keep to.

    Args:
        agreement: percent of answers that must be those of the unsplit model.
        deadline_s: nine of ten requests must be answered in it.
        memory_bytes: weights and largest features on the device.
        leakage: highest level of leakage, 1 to 5, that an audit may have found.
        pins: the only positions allowed; empty allows all.
        bans: positions not allowed.
        powers: of the device.
    """

    agreement: float = 98.0
    deadline_s: float | None = None
    memory_bytes: float | None = None
    leakage: float | None = None
    pins: tuple[str, ...] = ()
    bans: tuple[str, ...] = ()
    powers: Powers | None = None


def refusal(option: PlanOption, limits: Limits, manifest: Manifest) -> str | None:
    """Why an option is refused on every link; None when it is not."""
    checks = (
        _refuse_place(option, limits),
        _refuse_agreement(option, limits),
        _refuse_memory(option, limits),
        _refuse_leakage(option, limits, manifest),
        _refuse_late_everywhere(option, limits),
    )
    return next((reason for reason in checks if reason), None)


def refusal_here(option: PlanOption, limits: Limits, link: Link) -> str | None:
    """Why an option is refused on one link; None when it is not."""
    if limits.deadline_s is not None:
        late_s = p90_s(option, link)
        if late_s > limits.deadline_s:
            from_bps = _meets_from_bps(option, limits.deadline_s, link)
            where = "on no link" if from_bps is None else f"from {show_rate(from_bps)}"
            return (
                f"over the deadline: {show_ms(late_s)} at p90 > {show_ms(limits.deadline_s)}"
                f" (met {where})"
            )
    powers = limits.powers
    if powers and powers.ceiling_j is not None:
        energy_j = powers.energy_j(option, link)
        if energy_j > powers.ceiling_j:
            return f"over the energy: {energy_j:.3g} > {powers.ceiling_j:.3g} J a request"
    return None


def p90_s(option: PlanOption, link: Link) -> float:
    """Ninth decile of the latency.

    The medians, and the root of the squares of what each side's p90 is above its median: exact
    when both are normal and independent.
    """
    edge_s, cloud_s = option.edge_p90_s - option.edge_s, option.cloud_p90_s - option.cloud_s
    return latency_s(option, link) + math.hypot(edge_s, cloud_s)


def leakage_of(manifest: Manifest, cut: str) -> Leakage | None:
    """What an audit found at a cut; None where the manifest holds none."""
    return next((one.leakage for one in manifest.cuts if one.name == cut), None)


def _refuse_place(option: PlanOption, limits: Limits) -> str | None:
    if option.cut in limits.bans:
        return "banned"
    if limits.pins and option.cut not in limits.pins:
        return f"pinned to {', '.join(limits.pins)}"
    return None


def _refuse_agreement(option: PlanOption, limits: Limits) -> str | None:
    if option.agreement is None:
        is_asked = limits.agreement > 0
        return "agreement not measured: profile with --images DIR" if is_asked else None
    if option.agreement < limits.agreement:
        return f"misses the agreement floor: {option.agreement:.4g} < {limits.agreement:g} %"
    return None


def _refuse_memory(option: PlanOption, limits: Limits) -> str | None:
    if limits.memory_bytes is None or option.memory_bytes is None:
        return None
    if option.memory_bytes > limits.memory_bytes:
        needed, limit = option.memory_bytes / 1e6, limits.memory_bytes / 1e6
        return f"over the memory: {needed:.3g} > {limit:.3g} MB"
    return None


def _refuse_leakage(option: PlanOption, limits: Limits, manifest: Manifest) -> str | None:
    if limits.leakage is None or option.is_local:
        return None
    if option.cut == INPUT:
        return "sends the picture itself"
    found = leakage_of(manifest, option.cut)
    if found is None:
        return "not audited"
    if (found.codec, found.quality) != (option.codec, option.quality):
        quality = "" if found.quality is None else f" {found.quality:g}"
        return f"audited behind {found.codec}{quality} only"
    if found.level > limits.leakage:
        return f"over the leakage ceiling: level {found.level} > {limits.leakage:g}"
    return None


def _refuse_late_everywhere(option: PlanOption, limits: Limits) -> str | None:
    if limits.deadline_s is None or not option.is_local:
        return None  # the round trip counts too, so the rest is told link by link
    if option.edge_p90_s > limits.deadline_s:
        return (
            f"over the deadline: {show_ms(option.edge_p90_s)} at p90 > {show_ms(limits.deadline_s)}"
        )
    return None


def _meets_from_bps(option: PlanOption, deadline_s: float, link: Link) -> float | None:
    """The slowest link on which the deadline is met; None where none is fast enough."""
    transfer_s = 8 * option.bytes_up / link.uplink_bps
    left_s = deadline_s - (p90_s(option, link) - transfer_s)
    return 8 * option.bytes_up / left_s if left_s > 0 else None
