"""How features change from one frame to the next: what `step-ans` expects in a stream.

Pairs of frames are made from single pictures: the second is the first, moved by a few pixels, with
the noise of a sensor. Each level of motion gets, per frequency, how much of the known frame to keep
and how much is left to say.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from splitserve.codec import FeatureTables, Transform
from splitserve.codec.tables import OCTAVE, PULL_ONE
from splitserve.tensors import FloatArray

SHIFTS = (0, 1, 3, 8)  # pixels of a picture 224 pixels high
SHIFTS_HEIGHT = 224
NOISE = 1.5  # standard deviation, of 255
LEAST_LEFT = 2.0**-8

Pixels = npt.NDArray[np.uint8]


def moved_pictures(pixels: Pixels, generator: np.random.Generator) -> list[Pixels]:
    """Move a picture by every one of `SHIFTS`, each in its own direction, and add noise.

    Args:
        pixels: (height, width, 3).
        generator: of directions and noise.

    Returns:
        One picture of the same size per shift; edges repeat.
    """
    moved = []
    for shift in SHIFTS:
        far = round(shift * pixels.shape[0] / SHIFTS_HEIGHT)
        angle = generator.uniform(0, 2 * np.pi)
        down, right = round(far * np.sin(angle)), round(far * np.cos(angle))
        padded = np.pad(pixels, ((far, far), (far, far), (0, 0)), mode="edge")
        top, left = far + down, far + right
        view = padded[top : top + pixels.shape[0], left : left + pixels.shape[1]]
        noisy = view + generator.normal(0, NOISE, view.shape)
        moved.append(np.rint(noisy).clip(0, 255).astype(np.uint8))
    return moved


def fit_motion(
    tables: FeatureTables, before: FloatArray, after: Sequence[FloatArray]
) -> FeatureTables:
    """Add motion levels to a tensor's tables.

    Args:
        tables: with transform and scales.
        before: (pictures, ...), features of the known frames.
        after: per level, features of the frames that follow.
    """
    transform = Transform(tables)
    known = transform.forward(before)
    pulls, drifts = [], []
    for features in after:
        frame = transform.forward(features)
        common, energy = _mean(known * frame), np.maximum(_mean(known * known), 1e-30)
        pull = np.rint((common / energy).clip(0, 1) * PULL_ONE)
        rest = frame - (pull / PULL_ONE).astype(np.float32) * known
        left = np.sqrt(_mean(rest * rest) / np.maximum(_mean(frame * frame), 1e-30))
        pulls.append(pull.astype(np.uint8))
        drifts.append(np.rint(np.log2(left.clip(LEAST_LEFT, 2)) * OCTAVE).astype(np.int16))
    return replace(tables, pulls=np.stack(pulls), drifts=np.stack(drifts))


def _mean(values: FloatArray) -> npt.NDArray[np.float64]:
    """Mean per frequency over pictures, channels and blocks."""
    return np.asarray(values.mean(axis=(0, 1, 2), dtype=np.float64))
