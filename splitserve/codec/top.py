"""`top`: a classifier's best classes exactly, and one value for all the others. Replies only."""

import struct
from typing import ClassVar

import numpy as np

from splitserve.codec.raw import RawCodec
from splitserve.codec.symbols import References
from splitserve.errors import CodecError
from splitserve.tensors import Array

KEPT = 10
ENTRY = np.dtype([("index", "<u4"), ("value", "<f4")])
SUM_TOLERANCE = 1e-3


class TopCodec:
    """How many classes follow, the value of the others, then index and value of each, best first.

    Softmax of what is decoded gives the kept classes the probabilities that they had; a tensor
    that is no (1, classes) of finite float32 is stored whole, as `raw` stores it.
    """

    name: ClassVar[str] = "top"
    number: ClassVar[int] = 6
    takes_pixels: ClassVar[bool] = False
    parameter = 0

    def __init__(self) -> None:
        self._whole = RawCodec(exact=True)

    def encode(self, tensor: Array, index: int = 0) -> bytes:
        """Store the best classes of scores or probabilities."""
        is_row = tensor.ndim == 2 and tensor.shape[0] == 1 and tensor.dtype == np.float32
        if not is_row or tensor.shape[1] <= 2 * KEPT or not np.isfinite(tensor).all():
            return self._whole.encode(tensor, index)
        values = tensor[0]
        best = np.argsort(-values, kind="stable")[:KEPT]
        entries = np.empty(KEPT, ENTRY)
        entries["index"], entries["value"] = best, values[best]
        others = np.delete(values, best).astype(np.float64)
        rest = _typical(others, values.astype(np.float64))
        return struct.pack("<Bf", KEPT, rest) + entries.tobytes()

    def decode(
        self,
        payload: memoryview,
        shape: tuple[int, ...],
        dtype: str,
        index: int = 0,
        references: References | None = None,
    ) -> Array:
        """Fill a tensor with the value of the others, and put the kept ones in their places.

        Raises:
            CodecError: another length, type or shape, or an index twice or out of range.
        """
        count = payload[0] if len(payload) else 0
        if count == 0:
            return self._whole.decode(payload, shape, dtype, index, references)
        if dtype != "float32" or len(shape) != 2 or shape[0] != 1:
            raise CodecError(
                f"the best {count} of {dtype} {list(shape)}, which is no row of scores"
            )
        if len(payload) != 5 + count * ENTRY.itemsize:
            raise CodecError(f"top payload of {len(payload)} bytes for {count} classes")
        rest = np.frombuffer(payload, "<f4", 1, offset=1)
        entries = np.frombuffer(payload, ENTRY, offset=5)
        kept = entries["index"]
        if kept.max() >= shape[1] or len(np.unique(kept)) != count:
            raise CodecError(f"a class twice, or none of the {shape[1]}")
        if not (np.isfinite(rest).all() and np.isfinite(entries["value"]).all()):
            raise CodecError("a score that is no number")
        scores = np.full(shape, rest[0], np.float32)
        scores[0, kept] = entries["value"]
        return scores


def _typical(others: Array, values: Array) -> float:
    """One value for the others that keeps the softmax of the kept, or the sum of probabilities."""
    if values.min() >= 0 and abs(values.sum() - 1) < SUM_TOLERANCE:
        return float(others.mean())
    largest = others.max()
    return float(largest + np.log(np.exp(others - largest).mean()))
