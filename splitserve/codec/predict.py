"""Which probability table codes which coefficient: integer arithmetic on the artifact's tables.

By itself a coefficient is coded by its class, which is its standard deviation in steps. After a
known frame it is coded as the difference from a share of what it was there, by the class of what
usually remains.
"""

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from splitserve.codec.rans import SHIFT_MAX, Bytes, Ints, Model
from splitserve.codec.tables import (
    CLASSES,
    LEVELS_MAX,
    OCTAVE,
    OFFSETS,
    PULL_ONE,
    UNIT_CLASS,
    WIDENED_ZERO,
    FeatureTables,
)

SHIFTED_CLASS = CLASSES - OCTAVE  # a larger deviation is halved until its class is from here up
CACHED_ELEMENTS_MAX = 262_144  # 3 MB, and as much for motion: a peer chooses what is kept
TRIED = 2048  # coefficients on which the motion levels are compared

# Quarters of a step in which a mean may lie, from half a step below a whole number upwards: their
# middles are 3/8 or 1/8 of a step beside it. The tables know the upper side.
SIGN_OF_QUARTER = np.array([-1, -1, 1, 1], np.int32)
OFFSET_OF_QUARTER = np.array([2, 1, 1, 2], np.uint8)

Classes = npt.NDArray[np.int16]
Places = npt.NDArray[np.intp]
Number = TypeVar("Number", bound=np.generic)
Value = TypeVar("Value")


class Alone(NamedTuple):
    """How a tensor is coded when no frame is known.

    Args:
        places: which of the flat coefficients are coded at all; the others are 0.
        classes: class of each of these.
        model: probabilities of each of these.
    """

    places: Places
    classes: Classes
    model: Model


class After(NamedTuple):
    """How a tensor is coded after a known frame; value = mean + sign * coded.

    Args:
        mean: what is expected of each coded coefficient.
        sign: which side of `mean` the true expectation lies on: the tables know one side.
        model: probabilities of the differences.
    """

    mean: Ints
    sign: Ints
    model: Model


class _Motion(NamedTuple):
    """What of `After` does not depend on the known frame; one entry per coded coefficient."""

    pulls: Ints
    rows: Bytes
    shifts: Bytes
    plain: Places
    """Which are too spread for an offset to matter."""


class _Kept(Generic[Value]):
    """The last few results of a method. Thread-safe.

    `lru_cache` would hold the method and so its object, which only the collector could then free:
    megabytes for each codec that made room for another.

    Args:
        most: results that are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: dict[tuple[int, ...], Value] = {}

    def get(self, make: Callable[..., Value], *key: int) -> Value:
        """Return what was made of these numbers, or make it."""
        values = self._values
        if key not in values:
            kept = list(values.items())[1 - self._most :] if self._most > 1 else []
            values = self._values = dict([*kept, (key, make(*key))])
        return values[key]


class Predictor:
    """Chooses tables for one tensor at one step.

    Args:
        tables: the tensor's tables.
        parameter: the step's code.
    """

    def __init__(self, tables: FeatureTables, parameter: int) -> None:
        self.tables = tables
        self._parameter = parameter
        self._kept_alone: _Kept[Alone] = _Kept(1)
        self._kept_motion: _Kept[_Motion] = _Kept(1)
        self._kept_first: _Kept[_Motion] = _Kept(LEVELS_MAX)

    def alone(self, batch: int, blocks: int) -> Alone:
        """Choose by the class of each coefficient alone; kept for the last single input."""
        if self._may_be_kept(batch, blocks):
            return self._kept_alone.get(self._alone, batch, blocks)
        return self._alone(batch, blocks)

    def _may_be_kept(self, batch: int, blocks: int) -> bool:
        return batch == 1 and blocks * self.tables.scales.size <= CACHED_ELEMENTS_MAX

    def _alone(self, batch: int, blocks: int) -> Alone:
        classes = self._spread(self._classes(self.tables.scales), batch, blocks)
        places = np.flatnonzero(classes >= 0)
        return Alone(places, classes[places], self._model(classes[places]))

    def after(self, values: Ints, level: int) -> After:
        """Predict from the integers of a known frame; what that needs is kept for one level.

        Args:
            values: (batch, K, blocks, B), the known frame.
            level: motion level, from 1.
        """
        batch, _, blocks, _ = values.shape
        if self._may_be_kept(batch, blocks):
            motion = self._kept_motion.get(self._motion, level, batch, blocks)
        else:
            motion = self._motion(level, batch, blocks)
        return self._after(values.reshape(-1)[self.alone(batch, blocks).places], motion)

    def first_after(self, values: Ints, level: int) -> After:
        """Do the same for the first `TRIED` coded coefficients alone; kept for every level."""
        batch, _, blocks, _ = values.shape
        places = self.alone(batch, blocks).places[:TRIED]
        motion = self._kept_first.get(self._first_motion, level, batch, blocks)
        return self._after(values.reshape(-1)[places], motion)

    def _after(self, known: Ints, motion: _Motion) -> After:
        pulled = motion.pulls * known + np.int32(PULL_ONE // 2)
        quarter = (pulled & (PULL_ONE - 1)) >> 4
        sign, offset = SIGN_OF_QUARTER[quarter], OFFSET_OF_QUARTER[quarter]
        sign[motion.plain], offset[motion.plain] = 1, 0
        model = Model(motion.rows + offset, motion.shifts, self.tables.cumulative)
        return After(pulled >> 6, sign, model)

    def _first_motion(self, level: int, batch: int, blocks: int) -> _Motion:
        return self._motion(level, batch, blocks, TRIED)

    def _motion(self, level: int, batch: int, blocks: int, count: int | None = None) -> _Motion:
        alone = self.alone(batch, blocks)
        places = alone.places[:count]
        shape = self.tables.scales.shape
        pulls = np.broadcast_to(self.tables.pulls[level - 1].astype(np.int32), shape)
        scales = self.tables.scales + self.tables.drifts[level - 1]
        drifts = self._classes(scales).clip(-WIDENED_ZERO, WIDENED_ZERO - 1)
        widened = self.tables.widened[drifts + WIDENED_ZERO].astype(np.int16)
        classes = np.minimum(self._spread(widened, batch, blocks)[places], alone.classes[:count])
        model = self._model(classes)
        return _Motion(
            self._spread(pulls, batch, blocks)[places],
            model.tables,
            model.shifts,
            np.flatnonzero(classes >= CLASSES),
        )

    def _classes(self, scales: npt.NDArray[np.int16]) -> Classes:
        classes = scales - np.int16(self._parameter - UNIT_CLASS)
        return np.asarray(np.minimum(classes, SHIFTED_CLASS + SHIFT_MAX * OCTAVE), np.int16)

    def _spread(self, values: npt.NDArray[Number], batch: int, blocks: int) -> npt.NDArray[Number]:
        """Repeat (K, B) for every block of every item: flat (batch * K * blocks * B)."""
        count, size = values.shape
        shape = (batch, count, blocks, size)
        return np.broadcast_to(values[:, None, :], shape).reshape(-1)

    def _model(self, classes: Classes) -> Model:
        """Tables for these classes with the mean in the centre."""
        shifts = np.maximum(0, (classes - SHIFTED_CLASS) // OCTAVE)
        rows = np.maximum(0, classes - OCTAVE * shifts) * OFFSETS
        return Model(rows.astype(np.uint8), shifts.astype(np.uint8), self.tables.cumulative)
