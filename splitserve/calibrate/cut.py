"""Calibrate one cut: tables from some inputs, rates on others."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from splitserve.agreement import Judge, best_class, estimate
from splitserve.artifact import Rate
from splitserve.calibrate.fit import Weights, channel_axis, fit_tables, plain_tables
from splitserve.calibrate.motion import fit_motion
from splitserve.calibrate.sensitivity import balance, count_groups, measure_weights
from splitserve.codec import Codec, FeatureTables, StepAnsCodec, round_to_dtype
from splitserve.codec.tables import OCTAVE, STEP_CODES, STEP_ZERO, may_be_coded
from splitserve.runtime import Chain
from splitserve.tensors import Array, Tensors, TensorSpec
from splitserve.wire import NO_ID, Request, Section, encode_frame

CODED_ELEMENTS_MIN = 64
NOISE_INPUTS = 24
DEADLINE_S = 1.0  # any: the frame has room for one in any case
COARSEST_STEP, FINEST_STEP = 8.0, 1 / 64  # of the features' standard deviation


@dataclass(frozen=True, slots=True)
class Material:
    """What is known at one cut.

    Args:
        position: of the cut.
        egress: what crosses there.
        fit: features to fit tables to, per input.
        fit_wanted: the unsplit model's outputs for these.
        held: features of other inputs, to measure on.
        held_wanted: the unsplit model's outputs for these.
        labels: right classes of the held inputs; empty where they are not known.
        pairs: features of known frames, then per motion level of the frames that follow; empty
            without pictures.
    """

    position: int
    egress: tuple[TensorSpec, ...]
    fit: Sequence[Tensors]
    fit_wanted: Sequence[Tensors]
    held: Sequence[Tensors]
    held_wanted: Sequence[Tensors]
    labels: Sequence[int]
    pairs: Sequence[Sequence[Tensors]]


class CutCalibrator:
    """Finds tables and rates of one cut.

    Args:
        chain: the artifact's segments.
        material: what is known at the cut.
        judge: what agreeing means.
        seed: of the noise.
        tick: called with the number of tails that have just run.
    """

    def __init__(
        self,
        chain: Chain,
        material: Material,
        judge: Judge,
        seed: int,
        tick: Callable[[int], object],
    ) -> None:
        self._chain = chain
        self._material = material
        self._judge = judge
        self._generator = np.random.default_rng([seed, material.position])
        self._tick = tick

    def fit(
        self, channels_last: bool, announce: Callable[[int], object]
    ) -> list[FeatureTables | None]:
        """Find the tables of every egress tensor; None for one that is stored as it is.

        Args:
            channels_last: of pictures; token sequences have their channels last in any case.
            announce: called with the number of tails that will run, before the first one does.

        Raises:
            CodecError: tables that the codec would refuse.
        """
        material = self._material
        coded = [spec for spec in material.egress if is_coded(spec, material.fit)]
        features = [_stack(material.fit, spec.name) for spec in coded]
        plain = [
            plain_tables(stack, channel_axis(spec, channels_last))
            for spec, stack in zip(coded, features, strict=True)
        ]
        groups = sum(count_groups(table) for table in plain)
        announce(groups * len(material.fit[:NOISE_INPUTS]))
        measured = [self._weights(spec, table) for spec, table in zip(coded, plain, strict=True)]
        weights = balance([weight for weight, _ in measured], [felt for _, felt in measured])
        tables: dict[str, FeatureTables] = {}
        for spec, stack, table, weight in zip(coded, features, plain, weights, strict=True):
            fitted = fit_tables(stack, table, weight)
            if material.pairs:
                known, *after = (_stack(frames, spec.name) for frames in material.pairs)
                fitted = fit_motion(fitted, known, after)
            fitted.check(spec)
            tables[spec.name] = fitted
        return [tables.get(spec.name) for spec in material.egress]

    def _weights(self, spec: TensorSpec, plain: FeatureTables) -> tuple[Weights, float]:
        material = self._material
        some = [tensors[spec.name] for tensors in material.fit[:NOISE_INPUTS]]

        def divergence(index: int, moved: Array) -> float:
            own = {spec.name: round_to_dtype(moved, spec.dtype)}
            tensors = {**material.fit[index], **own}
            return self._judge.divergence(self._tail(tensors), material.fit_wanted[index])

        return measure_weights(
            some, plain, divergence, self._generator, lambda: self._tick(len(some))
        )

    def rates(
        self, tables: Sequence[FeatureTables | None], floors: Sequence[float]
    ) -> tuple[Rate, ...]:
        """Find the coarsest step that keeps each agreement, by bisection on the held inputs.

        Args:
            tables: what `fit` gave.
            floors: agreement in percent.

        Returns:
            One rate per floor, the finest first; floors that the finest step misses are left out.
        """
        spread = max((_spread(table) for table in tables if table), default=1.0)
        low, high = (_code(spread * share) for share in (FINEST_STEP, COARSEST_STEP))
        seen: dict[int, Rate] = {}

        def is_kept(floor: float, parameter: int) -> bool:
            if parameter not in seen:
                seen[parameter] = self.measure(tables, parameter)
                self._tick(len(self._material.held))
            return seen[parameter].agreement.value >= floor

        found = []
        for floor in sorted(set(floors), reverse=True):
            parameter = _last(low, high, functools.partial(is_kept, floor))
            if parameter is not None:
                found.append(seen[parameter].model_copy(update={"floor": floor}))
        return tuple(found)

    def measure(self, tables: Sequence[FeatureTables | None], parameter: int) -> Rate:
        """Send every held input through the codec at one step."""
        material, codec = self._material, StepAnsCodec(tables, parameter)
        hits, right, right_unsplit, sizes = [], [], [], []
        for index, tensors in enumerate(material.held):
            payloads = [
                codec.encode(tensors[spec.name], number)
                for number, spec in enumerate(material.egress)
            ]
            got, wanted = self._through(codec, tensors, payloads), material.held_wanted[index]
            values = [tensors[spec.name] for spec in material.egress]
            sizes.append(frame_bytes(material.position, codec, values, payloads))
            hits.append(self._judge.agrees(got, wanted))
            if material.labels:
                label, name = material.labels[index], self._judge.outputs[0]
                right.append(best_class(got[name]) == label)
                right_unsplit.append(best_class(wanted[name]) == label)
        return Rate(
            floor=100,
            parameter=parameter,
            agreement=estimate(hits),
            bytes_mean=round(float(np.mean(sizes)), 1),
            bytes_p95=round(float(np.percentile(sizes, 95)), 1),
            accuracy=estimate(right) if right else None,
            accuracy_unsplit=estimate(right_unsplit) if right else None,
        )

    def _through(self, codec: StepAnsCodec, tensors: Tensors, payloads: Sequence[bytes]) -> Tensors:
        """Answer from decoded payloads."""
        decoded = {}
        for number, (spec, payload) in enumerate(zip(self._material.egress, payloads, strict=True)):
            shape = tensors[spec.name].shape
            decoded[spec.name] = codec.decode(memoryview(payload), shape, spec.dtype, number)
        return self._tail(decoded)

    def _tail(self, tensors: Tensors) -> Tensors:
        return self._chain.run(tensors, self._material.position, len(self._chain))


def _stack(inputs: Sequence[Tensors], name: str) -> Array:
    """One tensor of all inputs along the first axis."""
    return np.concatenate([tensors[name] for tensors in inputs])


def is_coded(spec: TensorSpec, seen: Sequence[Tensors]) -> bool:
    """Whether a tensor is worth tables: enough numbers that may be rounded, in every input alike.

    Free sizes count as they were seen. Infinities, such as a mask's, are no numbers to round.
    """
    values = [tensors[spec.name] for tensors in seen]
    return (
        may_be_coded(spec)
        and len({value.shape for value in values}) == 1
        and values[0].size >= CODED_ELEMENTS_MIN
        and all(np.isfinite(value).all() for value in values)
    )


def most_searches(floors: int) -> int:
    """Most rates that the search for so many floors measures."""
    codes = OCTAVE * math.log2(COARSEST_STEP / FINEST_STEP) + 2
    return floors * (1 + math.ceil(math.log2(codes)))


def frame_bytes(
    position: int, codec: Codec, values: Sequence[Array], payloads: Sequence[bytes]
) -> int:
    """Bytes of the request frame that carries these tensors as these payloads."""
    sections = tuple(
        Section(value.shape, payload) for value, payload in zip(values, payloads, strict=True)
    )
    request = Request(NO_ID, NO_ID, position, codec.number, sections, DEADLINE_S, codec.parameter)
    return len(encode_frame(request))


def _spread(tables: FeatureTables) -> float:
    """Root mean square of the coefficients' standard deviations."""
    deviations = np.exp2((tables.scales.astype(float) - STEP_ZERO) / OCTAVE)
    return float(np.sqrt(np.square(deviations).mean()))


def _code(step: float) -> int:
    """Code of the step nearest to a size."""
    code = round(OCTAVE * float(np.log2(max(step, 1e-15)))) + STEP_ZERO
    return min(max(code, 0), STEP_CODES - 1)


def _last(low: int, high: int, is_good: Callable[[int], bool]) -> int | None:
    """Last code from low to high that is good, if all good ones come first; None without any."""
    if not is_good(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        if is_good(middle):
            low = middle
        else:
            high = middle - 1
    return low
