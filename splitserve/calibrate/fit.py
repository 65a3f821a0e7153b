"""Find the transform, the scales and the probability tables of one tensor from its features."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.special import gamma, gammainc

from splitserve.codec.rans import REACH, TOTAL_BITS
from splitserve.codec.tables import (
    CLASSES,
    OCTAVE,
    STEP_CODES,
    STEP_ZERO,
    UNIT_CLASS,
    WIDENED_ZERO,
    FeatureTables,
)
from splitserve.codec.transform import Transform, block_sizes, to_maps
from splitserve.tensors import FloatArray, TensorSpec

MIX_CHANNELS_MAX = 512  # mixing costs channels^2 multiply-adds a position
MIX_ROWS_MIN = 2  # positions for each channel
DEAD = 1e-9  # of the largest energy; a direction that is always zero is dropped
SHAPE_RANGE = (0.7, 2.2)
SHAPES = np.linspace(*SHAPE_RANGE, 151)

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Weights:
    """How much the tail feels noise in each mixed channel and each frequency, as amplitudes.

    Args:
        gain: (K,).
        bands: (B,).
    """

    gain: FloatArray
    bands: FloatArray


def channel_axis(spec: TensorSpec, channels_last: bool) -> int:
    """Axis whose entries are mixed: the second of pictures, the last of token sequences."""
    rank = len(spec.shape)
    if rank < 2:
        return 0
    axis = 1 if rank != 3 and not channels_last else rank - 1
    return axis if isinstance(spec.shape[axis], int) else 0


def plain_tables(features: FloatArray, axis: int) -> FeatureTables:
    """Build tables with the transform alone: no weights, no scales yet.

    Args:
        features: (pictures, ...) of one tensor.
        axis: the channel axis.
    """
    maps = to_maps(features, axis)
    basis = _basis(maps) if axis and _may_mix(maps) else np.zeros((0, 0))
    count = basis.shape[1] if basis.size else maps.shape[1]
    block = block_sizes(*maps.shape[2:])
    size = block[0] * block[1]
    return FeatureTables(
        axis=np.array(axis, np.int64),
        block=np.array(block, np.int64),
        basis=basis.astype(np.float32),
        gain=np.ones(count, np.float32),
        bands=np.ones(size, np.float32),
        bias=np.zeros((count, size), np.float32),
        scales=np.zeros((count, size), np.int16),
        cumulative=cumulative_tables(SHAPE_RANGE[1]),
        pulls=np.zeros((0, size), np.uint8),
        drifts=np.zeros((0, size), np.int16),
        widened=widened_classes(),
    )


def _may_mix(maps: FloatArray) -> bool:
    """Whether it is cheap, and enough was seen: directions never seen would be left out."""
    channels: int = maps.shape[1]
    rows: int = maps.size // channels
    return channels <= MIX_CHANNELS_MAX and rows >= MIX_ROWS_MIN * channels


def _basis(maps: FloatArray) -> Doubles:
    """Principal directions of the channels, the strongest first: (C, K), orthonormal."""
    rows = np.moveaxis(maps, 1, -1).reshape(-1, maps.shape[1]).astype(np.float64)
    variances, directions = np.linalg.eigh(np.atleast_2d(np.cov(rows, rowvar=False)))
    energy = variances + (rows.mean(axis=0) @ directions) ** 2
    alive = energy > DEAD * max(energy.max(), np.finfo(np.float64).tiny)
    alive[-1] = True
    return np.asarray(directions[:, alive][:, ::-1])


def fit_tables(features: FloatArray, plain: FeatureTables, weights: Weights) -> FeatureTables:
    """Add weights, means, scales and probabilities to `plain_tables`."""
    weighted = replace(plain, gain=weights.gain, bands=weights.bands)
    coefficients = Transform(weighted).forward(features)
    bias = coefficients.mean(axis=(0, 2))
    centred = coefficients - bias[:, None]
    deviation = np.sqrt(np.square(centred, dtype=np.float64).mean(axis=(0, 2)))
    return replace(
        weighted,
        bias=bias.astype(np.float32),
        scales=to_scales(deviation),
        cumulative=cumulative_tables(fit_shape(centred, deviation)),
    )


def to_scales(deviation: Doubles) -> npt.NDArray[np.int16]:
    """Standard deviations as integers: eighths of an octave, 1 is 512."""
    least = 2.0 ** (-STEP_CODES / OCTAVE)
    scales = np.rint(np.log2(np.maximum(deviation, least)) * OCTAVE) + STEP_ZERO
    return np.asarray(scales.clip(-STEP_CODES, STEP_CODES), np.int16)


def fit_shape(centred: FloatArray, deviation: Doubles) -> float:
    """Shape of the generalised Gaussian that has the mean magnitude seen: 1 Laplace, 2 Gauss."""
    is_alive = deviation > 0
    ratio = np.abs(centred).mean(axis=(0, 2))[is_alive] / deviation[is_alive]
    if not ratio.size:
        return SHAPE_RANGE[1]
    expected = gamma(2 / SHAPES) / np.sqrt(gamma(1 / SHAPES) * gamma(3 / SHAPES))
    return float(SHAPES[np.argmin(np.abs(expected - np.median(ratio)))])


def cumulative_tables(shape: float) -> npt.NDArray[np.uint16]:
    """Probability tables for every class and offset: (144, 33), rising from 0 to 2^14.

    The probability of a value is the generalised Gaussian's over its cell; what lies beyond the
    reach belongs to the escape. No entry is 0.
    """
    edges = np.arange(-REACH, REACH + 2) - 0.5
    rows = []
    for level in range(CLASSES):
        deviation = 2.0 ** ((level - UNIT_CLASS) / OCTAVE)
        scale = deviation * np.sqrt(gamma(1 / shape) / gamma(3 / shape))
        for offset in (0.0, 0.125, 0.375):
            inside = np.diff(_distribution((edges - offset) / scale, shape))
            rows.append(_whole_numbers(np.append(inside, max(0.0, 1 - inside.sum()))))
    return np.array(rows, np.uint16)


def _distribution(x: Doubles, shape: float) -> Doubles:
    return np.asarray(0.5 + 0.5 * np.sign(x) * gammainc(1 / shape, np.abs(x) ** shape))


def _whole_numbers(probabilities: Doubles) -> Doubles:
    """Cumulative frequencies that sum to 2^14, each at least 1."""
    total = 1 << TOTAL_BITS
    counts = np.maximum(1, np.rint(probabilities * (total - len(probabilities))))
    counts[np.argmax(counts)] += total - counts.sum()
    return np.concatenate([[0], np.cumsum(counts)])


def widened_classes() -> npt.NDArray[np.uint8]:
    """Class of a drift once the rounding of the known frame, 1/12 of a step squared, is added."""
    drift = 2.0 ** ((np.arange(256) - WIDENED_ZERO - UNIT_CLASS) / OCTAVE)
    widened = np.rint(np.log2(np.sqrt(drift**2 + 1 / 12)) * OCTAVE) + UNIT_CLASS
    return np.asarray(widened.clip(0, WIDENED_ZERO - 1), np.uint8)
