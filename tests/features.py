"""Features made by hand, and codec tables fitted to them: what `step-ans` needs without a model."""

import numpy as np

from splitserve.calibrate.fit import Weights, fit_tables, plain_tables
from splitserve.calibrate.motion import fit_motion
from splitserve.codec import FeatureTables
from splitserve.tensors import FloatArray, TensorSpec

INPUTS = 24


def correlated(shape: tuple[int, ...], seed: int = 0, axis: int = 1) -> FloatArray:
    """Values that vary slowly along every axis, with channels that resemble one another."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(shape)
    for along in range(1, len(shape)):
        if along != axis:
            values = values + 2 * np.roll(values, 1, along) + np.roll(values, 2, along)
    if axis:
        count = shape[axis]
        mix = np.random.default_rng(count).standard_normal((count, count)) / count
        mix = mix + np.eye(count) * 2.0 ** -np.arange(count).clip(0, 6)
        values = np.moveaxis(np.moveaxis(values, axis, -1) @ mix, -1, axis)
    return values.astype(np.float32)


def tables_for(features: FloatArray, axis: int = 1) -> FeatureTables:
    """Tables with unit weights and no motion."""
    plain = plain_tables(features, axis)
    return fit_tables(features, plain, Weights(plain.gain, plain.bands))


def moving_tables(features: FloatArray, axis: int = 1) -> FeatureTables:
    """Tables with one level for what stands still and one for what changes a little."""
    still = features + np.float32(0.01) * correlated(features.shape, 98, axis)
    changed = features + np.float32(0.3) * correlated(features.shape, 99, axis)
    return fit_motion(tables_for(features, axis), features, [still, changed])


def spec_of(features: FloatArray, name: str = "features", dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=("batch", *features.shape[1:]))
