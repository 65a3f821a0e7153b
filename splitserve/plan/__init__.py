"""Where to cut, or not to: profiles of two machines and a link become plans and reasons."""

from splitserve.plan.bound import Setup
from splitserve.plan.decide import Decision, Verdict, decide
from splitserve.plan.limits import Limits, Powers
from splitserve.plan.offers import Offer, make_offers

__all__ = [
    "Decision",
    "Limits",
    "Offer",
    "Powers",
    "Setup",
    "Verdict",
    "decide",
    "make_offers",
]
