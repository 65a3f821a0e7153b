"""How much the tail feels noise in each mixed channel and in each frequency of the features.

Noise of a known energy goes into one group of coefficients at a time; what the answers change by,
per unit of energy, is the group's sensitivity. Coefficients are then weighted by it, so that one
step serves all: at high rates the best weight is the square root of the sensitivity (Gersho and
Gray, Vector Quantization and Signal Compression, 1992, ch. 8); channels, whose sensitivities are
measured on fewer answers, get a little less, which was better on held-out pictures.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from splitserve.calibrate.fit import Weights
from splitserve.codec import FeatureTables, Transform
from splitserve.tensors import Array, FloatArray

NOISE_SHARE = 0.3  # of the features' standard deviation
CHANNELS_ALONE = 24
CHANNEL_GROUPS = 48
BAND_GROUPS = 8
CHANNEL_POWER = 0.4
BAND_POWER = 0.5
LARGEST_WEIGHT = 4.0

Doubles = npt.NDArray[np.float64]
Groups = npt.NDArray[np.intp]
Divergence = Callable[[int, Array], float]


def group_channels(count: int) -> Groups:
    """Group of each mixed channel: the strong ones alone, the others with their neighbours."""
    if count <= CHANNEL_GROUPS:
        return np.arange(count)
    rest = count - CHANNELS_ALONE
    tail = CHANNELS_ALONE + np.arange(rest) * (CHANNEL_GROUPS - CHANNELS_ALONE) // rest
    return np.concatenate([np.arange(CHANNELS_ALONE), tail])


def group_bands(block: tuple[int, int]) -> Groups:
    """Group of each frequency by its distance from zero: (height x width,)."""
    rows, columns = np.arange(block[0]) / block[0], np.arange(block[1]) / block[1]
    distance = np.hypot(rows[:, None], columns[None]).reshape(-1)
    places = np.unique(np.quantile(distance, np.arange(1, BAND_GROUPS) / BAND_GROUPS))
    return np.unique(np.searchsorted(places, distance, side="left"), return_inverse=True)[1]


def count_groups(plain: FeatureTables) -> int:
    """Count the groups of a tensor, each of which takes one run of every input's tail."""
    channels = group_channels(len(plain.gain))
    bands = group_bands((int(plain.block[0]), int(plain.block[1])))
    return int(channels.max() + 1 + bands.max() + 1)


def measure_weights(
    features: Sequence[Array],
    plain: FeatureTables,
    divergence: Divergence,
    generator: np.random.Generator,
    tick: Callable[[], object],
) -> tuple[Weights, float]:
    """Measure a tensor's sensitivities.

    Args:
        features: one tensor of each input, of one shape.
        plain: its transform.
        divergence: what input i's answer changes by when its tensor is this one; where that is
            not finite, the input does not count.
        generator: of the noise.
        tick: called once per group, for a progress bar.

    Returns:
        Weights of mean square 1, and the tensor's sensitivity per unit of noise energy, NaN where
        no answer was finite.
    """
    transform = Transform(plain)
    shape = transform.coefficients_shape(features[0].shape)
    amplitude = NOISE_SHARE * float(np.std(features))
    channels = group_channels(shape[1])
    bands = group_bands((int(plain.block[0]), int(plain.block[1])))

    def sensitivity(is_in: npt.NDArray[np.bool_]) -> float:
        total = energy = 0.0
        is_known = False
        for index, own in enumerate(features):
            noise = generator.standard_normal(shape).astype(np.float32) * amplitude * is_in
            moved = transform.backward(transform.forward(own) + noise, own.shape)
            change = divergence(index, moved)
            if math.isfinite(change):
                is_known = True
                total += change
                energy += float(np.square(noise).sum())
        tick()
        if not is_known:
            return math.nan
        return max(0.0, total) / energy if energy else 0.0

    felt = [sensitivity((channels == group)[:, None, None]) for group in range(channels.max() + 1)]
    by_channel = np.array(felt)[channels]
    by_band = np.array([sensitivity(bands == group) for group in range(bands.max() + 1)])[bands]
    weights = Weights(_weights(by_channel, CHANNEL_POWER), _weights(by_band, BAND_POWER))
    return weights, float(_known(by_band).mean())


def balance(weights: Sequence[Weights], felt: Sequence[float]) -> list[Weights]:
    """Scale the weights of a cut's tensors so that one step suits all of them.

    Where a tensor's sensitivity is not known (NaN), the others' mean stands for it.
    """
    known = [value for value in felt if math.isfinite(value)]
    mean = sum(known) / max(1, len(known)) or 1.0
    filled = [value if math.isfinite(value) else mean for value in felt]
    factors = [min(max((value / mean) ** BAND_POWER, 1e-3), 1e3) for value in filled]
    return [
        replace(weight, gain=weight.gain * np.float32(factor))
        for weight, factor in zip(weights, factors, strict=True)
    ]


def _known(felt: Doubles) -> Doubles:
    """Sensitivities with the mean of the known ones for those that are not."""
    is_known = np.isfinite(felt)
    return np.where(is_known, felt, felt[is_known].mean() if is_known.any() else math.nan)


def _weights(felt: Doubles, power: float) -> FloatArray:
    filled = _known(felt)
    mean = filled.mean()
    if not mean > 0:
        return np.ones(len(felt), np.float32)
    bounded = (filled / mean).clip(LARGEST_WEIGHT**-2, LARGEST_WEIGHT**2)
    return np.asarray(bounded**power, np.float32)
