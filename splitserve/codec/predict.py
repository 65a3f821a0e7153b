"""Which probability table codes which coefficient: integer arithmetic on the artifact's tables.

By itself a coefficient is coded by its class, which is its standard deviation in steps. After a
known frame it is coded as the difference from a share of what it was there, by the class of what
usually remains.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from splitserve.codec.rans import Ints, Model
from splitserve.codec.tables import (
    CLASSES,
    OCTAVE,
    OFFSETS,
    PULL_ONE,
    UNIT_CLASS,
    WIDENED_ZERO,
    FeatureTables,
)

SHIFT_MAX = 15
SHIFTED_CLASS = CLASSES - OCTAVE  # a larger deviation is halved until its class is from here up
CACHED_SHAPES = 8

Classes = npt.NDArray[np.int16]
Places = npt.NDArray[np.intp]


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


class Predictor:
    """Chooses tables for one tensor at one step.

    Args:
        tables: the tensor's tables.
        parameter: the step's code.
    """

    def __init__(self, tables: FeatureTables, parameter: int) -> None:
        self._tables = tables
        self._parameter = parameter
        self.alone = lru_cache(CACHED_SHAPES)(self._alone)

    def _alone(self, batch: int, blocks: int) -> Alone:
        classes = self._spread(self._classes(self._tables.scales), batch, blocks)
        places = np.flatnonzero(classes >= 0)
        return Alone(places, classes[places], self._model(classes[places], None))

    def after(self, values: Ints, level: int) -> After:
        """Predict from the integers of a known frame.

        Args:
            values: (batch, K, blocks, B), the known frame.
            level: motion level, from 1.
        """
        batch, _, blocks, _ = values.shape
        alone = self.alone(batch, blocks)
        pulls = np.broadcast_to(self._tables.pulls[level - 1], values.shape)
        scales = self._tables.scales + self._tables.drifts[level - 1]
        drifts = self._classes(scales).clip(-WIDENED_ZERO, WIDENED_ZERO - 1)
        widened = self._tables.widened[drifts + WIDENED_ZERO].astype(np.int16)
        classes = np.minimum(self._spread(widened, batch, blocks)[alone.places], alone.classes)
        pulled = (pulls * values).reshape(-1)[alone.places] + np.int32(PULL_ONE // 2)
        mean, rest = pulled >> 6, (pulled & (PULL_ONE - 1)) >> 4
        # Quarters -2, -1, 0, 1 of a step: their middles lie 3/8 or 1/8 beside the mean.
        is_plain = classes >= CLASSES
        sign = np.where(is_plain | (rest >= 2), np.int32(1), np.int32(-1))
        offsets = np.where(is_plain, 0, np.where((rest == 0) | (rest == 3), 2, 1))
        return After(mean, sign, self._model(classes, offsets.astype(np.uint8)))

    def _classes(self, scales: npt.NDArray[np.int16]) -> Classes:
        classes = scales - np.int16(self._parameter - UNIT_CLASS)
        return np.asarray(np.minimum(classes, SHIFTED_CLASS + SHIFT_MAX * OCTAVE), np.int16)

    def _spread(self, values: npt.NDArray[np.generic], batch: int, blocks: int) -> Classes:
        """Repeat (K, B) for every block of every item: flat (batch * K * blocks * B)."""
        count, size = values.shape
        shape = (batch, count, blocks, size)
        return np.broadcast_to(values[:, None, :], shape).reshape(-1)

    def _model(self, classes: Classes, offsets: npt.NDArray[np.uint8] | None) -> Model:
        shifts = np.maximum(0, (classes - SHIFTED_CLASS) // OCTAVE)
        rows = np.maximum(0, classes - OCTAVE * shifts) * OFFSETS
        if offsets is not None:
            rows = rows + offsets
        return Model(rows.astype(np.uint8), shifts.astype(np.uint8), self._tables.cumulative)
