"""What a split can gain at best over the better of edge-only and cloud-only, in closed form.

Source: the project's research notes, section 1.3, there without the common part `before_s`;
checked against a numeric sweep in the tests.
"""

import math
from dataclasses import dataclass

from splitserve.plans import Link


@dataclass(frozen=True, slots=True)
class Setup:
    """Two machines and a model.

    Args:
        before_s: P, what every plan does on the device first: the picture.
        edge_s: Te, the whole network on the device.
        cloud_s: Tc, the whole network in the cloud.
    """

    before_s: float
    edge_s: float
    cloud_s: float

    @property
    def saved_s(self) -> float:
        """D = Te - Tc, what the cloud computes faster."""
        return self.edge_s - self.cloud_s

    @property
    def ratio(self) -> float:
        """How many times slower the device is: g = Te / Tc."""
        return self.edge_s / self.cloud_s if self.cloud_s else math.inf


def can_win(setup: Setup, rtt_s: float, share: float, rho: float) -> bool:
    """Whether a split beats both extremes on some link: rho < 1 - f * D / (D - R).

    Args:
        setup: the machines.
        rtt_s: R, the round trip.
        share: f, the head's share of the work, 0 to 1.
        rho: the split's bytes over the upload's.
    """
    margin_s = setup.saved_s - rtt_s
    return margin_s > 0 and rho < 1 - share * setup.saved_s / margin_s


def best_rate_bps(setup: Setup, rtt_s: float, upload_bytes: float) -> float | None:
    """B* = 8 * S / (D - R), where a split is worth most: both extremes take the same time.

    Returns:
        None where the device is faster than the cloud on every link.
    """
    margin_s = setup.saved_s - rtt_s
    return 8 * upload_bytes / margin_s if margin_s > 0 else None


def max_gain(setup: Setup, rtt_s: float, share: float, rho: float) -> float:
    """The most that a split is faster, at B*, when codecs cost nothing.

        E / (E - [(1 - f) * D - R - (D - R) * rho])    with E = P + Te

    At most 1, and of no meaning, where `can_win` is false.
    """
    whole_s = setup.before_s + setup.edge_s
    saved_s, margin_s = setup.saved_s, setup.saved_s - rtt_s
    won_s = (1 - share) * saved_s - rtt_s - margin_s * rho
    return whole_s / (whole_s - won_s)


def ideal_split_s(
    setup: Setup, link: Link, share: float, bytes_up: float, cloud_share: float | None = None
) -> float:
    """Time of a split whose codec costs nothing: P + f * Te + c * Tc + R + 8 * S / B.

    Args:
        setup: the machines.
        link: B and R.
        share: f, of the network's time on the edge.
        bytes_up: S.
        cloud_share: c, of the network's time in the cloud; 1 - f by default.
    """
    rest = 1 - share if cloud_share is None else cloud_share
    compute_s = share * setup.edge_s + rest * setup.cloud_s
    return setup.before_s + compute_s + link.rtt_s + 8 * bytes_up / link.uplink_bps


def floor_s(setup: Setup, rtt_s: float) -> float:
    """Time below which no split of any network of this size comes, whatever it sends.

    P + min(Te, Tc) + R: its head and its bytes cost nothing.
    """
    return setup.before_s + min(setup.edge_s, setup.cloud_s) + rtt_s
