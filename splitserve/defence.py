"""What is done to features before they are encoded, so that their receiver learns less.

The device applies the defence that the manifest holds; a cloud needs to know nothing of it. Only
fresh noise comes with a bound (splitserve/audit/fisher.py); what the others are worth, attacks say.
"""

from collections.abc import Sequence

import numpy as np

from splitserve.artifact import Defence, Noise, Rounding, Subset, Withdrawn
from splitserve.errors import UsageError
from splitserve.tensors import Array

GRID = 1024  # of the noise's standard deviation


def defend(
    defence: Defence | None,
    tensors: Sequence[Array],
    generator: np.random.Generator | None = None,
) -> list[Array]:
    """Apply a defence to the egress tensors of one request, or of a batch.

    Args:
        defence: of the cut; None leaves the tensors as they are.
        tensors: in the order in which they travel.
        generator: of noise. By default one that the operating system has just seeded, so that
            nothing drawn for one request tells of another's.

    Raises:
        UsageError: a cut that is withdrawn.
    """
    if isinstance(defence, Withdrawn):
        raise UsageError("this cut is withdrawn: nothing may cross here")
    if isinstance(defence, Noise):
        drawn = generator or np.random.default_rng()
        return [
            _blur(tensor, amount, drawn)
            for tensor, amount in zip(tensors, defence.deviations, strict=True)
        ]
    if isinstance(defence, Rounding):
        return [
            np.round(tensor / _one(tensor, step)) * _one(tensor, step)
            for tensor, step in zip(tensors, defence.steps, strict=True)
        ]
    if isinstance(defence, Subset):
        parts = zip(tensors, defence.axes, defence.constants, strict=True)
        return [_keep(tensor, axis, constants) for tensor, axis, constants in parts]
    return list(tensors)


def _blur(tensor: Array, deviation: float, generator: np.random.Generator) -> Array:
    """Add noise, then round to a fine grid.

    Sums of floating-point numbers do not reach every number: without the grid the last digits
    would tell zeros from other values (after Mironov, CCS 2012).
    """
    noisy = tensor + generator.standard_normal(tensor.shape) * deviation
    grid = deviation / GRID
    return np.asarray(np.round(noisy / grid) * grid, tensor.dtype)


def _one(tensor: Array, amount: float) -> Array:
    """A number of the tensor's own type, so that float16 stays float16."""
    return np.asarray(amount, tensor.dtype)


def _keep(tensor: Array, axis: int, constants: Sequence[float | None]) -> Array:
    kept = tensor.copy()
    along = np.moveaxis(kept, axis, 0)
    for channel, constant in enumerate(constants):
        if constant is not None:
            along[channel] = constant
    return kept
