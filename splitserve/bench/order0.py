"""The bound that a codec without transform and context meets: order-0 entropy per channel.

A uniform step, one static distribution per channel, an ideal coder, no header, and the
distributions are those of the measured pictures themselves: no real codec of this kind is shorter.
"""

import numpy as np
import numpy.typing as npt

from splitserve.codec.transform import from_maps, to_maps
from splitserve.tensors import Array, FloatArray

REACH = 127


class Order0:
    """Quantises features and remembers the integers; `sizes` tells their ideal bytes at the end.

    Args:
        step: size of the step.
        axis: the channel axis.
    """

    def __init__(self, step: float, axis: int) -> None:
        self._step = np.float32(step)
        self._axis = axis
        self._seen: list[npt.NDArray[np.int8]] = []

    def through(self, tensor: Array) -> FloatArray:
        """Round a tensor to the step, and remember the integers."""
        maps = to_maps(tensor, self._axis)
        integers = np.rint(maps / self._step).clip(-REACH, REACH)
        self._seen.append(integers.astype(np.int8).reshape(maps.shape[1], -1))
        return from_maps(integers * self._step, tensor.shape, self._axis)

    def sizes(self) -> list[float]:
        """Ideal bytes of each tensor seen, in order."""
        seen = np.stack(self._seen).astype(np.int64) + REACH
        bits = np.zeros(len(seen))
        for channel in range(seen.shape[1]):
            values = seen[:, channel]
            counts = np.bincount(values.reshape(-1), minlength=2 * REACH + 1)
            with np.errstate(divide="ignore"):
                lengths = -np.log2(counts / counts.sum())
            bits += lengths[values].sum(axis=1)
        return list(bits / 8)
