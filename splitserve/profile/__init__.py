"""What heads, tails and codecs of an artifact cost on one machine: measured, and carried as JSON.

The room stays slim: a profile is taken on the device.
"""

from splitserve.profile.document import (
    Candidate,
    Machine,
    Pictures,
    Place,
    Prediction,
    Profile,
    Timing,
    read_profile,
)

__all__ = [
    "Candidate",
    "Machine",
    "Pictures",
    "Place",
    "Prediction",
    "Profile",
    "Timing",
    "read_profile",
]
