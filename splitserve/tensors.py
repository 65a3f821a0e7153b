"""Array aliases and TensorSpec, the words in which every other room speaks of tensors."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, field_validator

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]
Tensors = Mapping[str, Array]

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name)
    for name in (
        "float32", "float16", "float64", "uint8", "int8", "uint16", "int16", "uint32", "int32",
        "uint64", "int64", "bool",
    )
}  # fmt: skip


class TensorSpec(BaseModel):
    """Name, dtype and shape of one tensor.

    A dimension is an integer, or the name of a free dimension (`batch`); the same name stands for
    the same size in every tensor of one request.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    dtype: str
    shape: tuple[Annotated[int, Field(ge=1)] | Annotated[str, Field(min_length=1)], ...]

    @field_validator("dtype")
    @classmethod
    def _known(cls, dtype: str) -> str:
        if dtype not in DTYPES:
            raise ValueError(f"no dtype {dtype!r}; there are: {', '.join(DTYPES)}")
        return dtype

    @property
    def sizes(self) -> str:
        """Show the shape as `80x14x14`; a free first dimension, the batch, is left out."""
        is_free = bool(self.shape) and isinstance(self.shape[0], str)
        return "x".join(str(size) for size in self.shape[1 if is_free else 0 :]) or "scalar"

    def concrete(self, free: int = 1) -> tuple[int, ...]:
        """Shape when every free dimension is `free`."""
        return tuple(size if isinstance(size, int) else free for size in self.shape)

    def elements(self, free: int = 1) -> int:
        """Number of elements when every free dimension is `free`."""
        return math.prod(self.concrete(free))

    def raw_bytes(self, free: int = 1) -> int:
        """Bytes of the tensor as it lies in memory, free dimensions being `free`."""
        return self.elements(free) * DTYPES[self.dtype].itemsize


def mismatch(specs: Sequence[TensorSpec], shapes: Sequence[Sequence[int]]) -> str | None:
    """Say how concrete shapes contradict the specs, or None when they fit.

    A free dimension takes any size from 1 up, the same wherever its name stands.
    """
    if len(specs) != len(shapes):
        return f"{len(shapes)} tensors where {len(specs)} are expected"
    free: dict[str, int] = {}
    for spec, shape in zip(specs, shapes, strict=True):
        wrong = len(shape) != len(spec.shape) or not all(
            _fits(want, got, free) for want, got in zip(spec.shape, shape, strict=True)
        )
        if wrong:
            return f"{spec.name}: shape {list(shape)} where {list(spec.shape)} is expected"
    return None


def _fits(want: int | str, got: int, free: dict[str, int]) -> bool:
    if isinstance(want, str):
        want = free.setdefault(want, got)
        return got >= 1 and got == want
    return want == got
