"""Rounds over every stage in turn, so that what slows the machine slows all of them."""

from collections.abc import Callable, Sequence

import numpy as np

from splitserve.agreement import Judge
from splitserve.artifact import Manifest
from splitserve.errors import CodecError
from splitserve.picture import Pixels, decode_picture, normalise
from splitserve.profile.carrier import Carrier
from splitserve.profile.document import Timing
from splitserve.profile.inputs import Inputs
from splitserve.profile.stages import NOTHING, Span, Stages, Watch
from splitserve.tensors import Array, Tensors

Tick = Callable[[], object]
Key = tuple[str, int]  # stage, and the position or the carrier's index that it belongs to


def summarise(spans: Sequence[Span]) -> Timing:
    """Median and p90 over the rounds; zero without any."""
    if not spans:
        return Timing(median_s=0, p90_s=0, native_median_s=0, native_p90_s=0, count=0)
    (wall, native) = np.asarray(spans).T
    return Timing(
        median_s=float(np.median(wall)),
        p90_s=float(np.percentile(wall, 90)),
        native_median_s=float(np.median(native)),
        native_p90_s=float(np.percentile(native, 90)),
        count=len(spans),
    )


def survey(
    stages: Stages, manifest: Manifest, inputs: Inputs, carriers: Sequence[Carrier],
    judge: Judge | None, tick: Tick,
) -> None:  # fmt: skip
    """Send every input through every carrier: note bytes, and agreement where none is known.

    Args:
        stages: of the artifact.
        manifest: of the artifact.
        inputs: to send.
        carriers: they are filled in.
        judge: compares answers; None leaves agreement unknown.
        tick: called after each input.
    """
    for index in range(len(inputs)):
        pixels, tensors = _plain_input(manifest, inputs, index)
        features = stages.walk(tensors)
        for carrier in carriers:
            if carrier.problem is None:
                _send(stages, carrier, pixels, features, judge)
        tick()


def _send(
    stages: Stages,
    carrier: Carrier,
    pixels: Pixels | None,
    features: Sequence[Tensors],
    judge: Judge | None,
) -> None:
    here = features[carrier.position]
    carried = stages.carried(carrier, pixels, here)
    try:
        payloads = carrier.encode(carried)
    except CodecError as error:
        carrier.problem = str(error)
        return
    carrier.sizes.append(carrier.frame_bytes(carried, payloads))
    if carrier.agreement is not None:
        carrier.is_lossless = False
        return
    received = stages.receive(carrier, payloads, carried)
    carrier.is_lossless &= all(_is_same(received[name], here[name]) for name in received)
    if judge is not None:
        answer = stages.finish(received, carrier.position)
        carrier.hits.append(judge.agrees(answer, features[-1]))


def _is_same(one: Array, other: Array) -> bool:
    is_float = one.dtype.kind == "f"
    return one.dtype == other.dtype and bool(np.array_equal(one, other, equal_nan=is_float))


class Rounds:
    """Times every stage, one after another, round after round.

    Args:
        stages: of the artifact.
        manifest: of the artifact.
        inputs: taken in turn.
        carriers: those without a problem are timed.
        positions: whose heads and tails are timed.
    """

    def __init__(
        self,
        stages: Stages,
        manifest: Manifest,
        inputs: Inputs,
        carriers: Sequence[Carrier],
        positions: Sequence[int],
    ) -> None:
        self._stages = stages
        self._manifest = manifest
        self._inputs = inputs
        self._carriers = carriers
        self._positions = set(positions)
        self._spans: dict[Key, list[Span]] = {}

    def run(self, count: int, watch: Watch, tick: Tick) -> None:
        """Run some rounds; earlier ones are forgotten, so that a first call may warm up."""
        self._spans = {}
        for turn in range(count):
            self._one(turn % len(self._inputs), watch)
            tick()

    def timing(self, stage: str, index: int = 0) -> Timing:
        """What was seen of a stage."""
        return summarise(self._spans.get((stage, index), []))

    def _note(self, stage: str, index: int, span: Span) -> Span:
        self._spans.setdefault((stage, index), []).append(span)
        return span

    def _one(self, index: int, watch: Watch) -> None:
        pixels, tensors, before = self._input(index, watch)
        features = self._stages.walk(tensors)
        end = self._stages.end
        for position in range(end):
            head = tail = None
            if position in self._positions:
                _, span = watch.time(self._stages.head, tensors, position)
                head = self._note("head", position, span if position else NOTHING)
                watch.rest()
                _, span = watch.time(self._stages.tail, features[position], position)
                tail = self._note("tail", position, span)
            for number, carrier in enumerate(self._carriers):
                if carrier.position == position and carrier.problem is None:
                    self._stages.head(tensors, position)  # a codec meets the caches it leaves
                    encode, decode = self._carry(number, pixels, features[position], watch)
                    if head is not None and tail is not None:
                        self._note("edge", number, before.plus(head, encode))
                        self._note("cloud", number, decode.plus(tail))
        _, span = watch.time(self._stages.head, tensors, end)
        self._note("head", end, span)
        self._note("local", 0, before.plus(span))

    def _carry(
        self, number: int, pixels: Pixels | None, features: Tensors, watch: Watch
    ) -> tuple[Span, Span]:
        carrier = self._carriers[number]
        carried = self._stages.carried(carrier, pixels, features)
        payloads, encode = watch.time(carrier.encode, carried)
        self._stages.finish(features, carrier.position)  # as the request before this one did
        watch.rest()
        _, decode = watch.time(self._stages.receive, carrier, payloads, carried)
        return self._note("encode", number, encode), self._note("decode", number, decode)

    def _input(self, index: int, watch: Watch) -> tuple[Pixels | None, Tensors, Span]:
        preprocess = self._manifest.preprocess
        if preprocess is None:
            return None, self._inputs.tensors[index], NOTHING
        watch.rest()
        pixels, first = watch.time(decode_picture, self._inputs.contents[index], preprocess)
        values, second = watch.time(normalise, pixels, preprocess)
        self._note("picture", 0, first)
        self._note("normalise", 0, second)
        return pixels, {self._manifest.inputs[0].name: values}, first.plus(second)


def _plain_input(manifest: Manifest, inputs: Inputs, index: int) -> tuple[Pixels | None, Tensors]:
    if manifest.preprocess is None:
        return None, inputs.tensors[index]
    pixels = decode_picture(inputs.contents[index], manifest.preprocess)
    return pixels, {manifest.inputs[0].name: normalise(pixels, manifest.preprocess)}
