"""What the device computes: picture to features, features to sections, and the whole model."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from edge_agent.history import Coded, History, Known
from splitserve.artifact import Artifact, Withdrawn
from splitserve.codec import Codec, Codecs, StepAnsCodec, Symbols
from splitserve.defence import defend
from splitserve.errors import CodecError, UsageError
from splitserve.exits import Gate, Judged
from splitserve.picture import decode_picture, normalise
from splitserve.runtime import Chain
from splitserve.tensors import Array, Tensors
from splitserve.wire import Section

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Plan:
    """Where to cut, and how the features travel.

    Args:
        cut: name of the position.
        position: its number; 0 sends the input, the last position sends nothing.
        codec: turns features (or the picture, at position 0) into bytes.
    """

    cut: str
    position: int
    codec: Codec


@dataclass(slots=True)
class Work:
    """One picture on its way.

    Args:
        position: where its tensors are.
        tensors: the features, by name.
        pixels: the picture, where the plan's codec carries pictures.
        sections: the encoded features, empty when nothing travels.
        coded: the same as the codec's integers, where a stream may build on them.
        stages_s: seconds of each stage.
        native_s: seconds computed here, without the stretching of a slowdown.
        bytes_up: bytes of the request frames that were handed to the uplink.
        problem: why the features cannot travel.
        judged: what the exit says of the features, where one was asked.
    """

    position: int
    tensors: Tensors
    pixels: Array | None = None
    sections: tuple[Section, ...] = ()
    coded: Coded | None = None
    stages_s: dict[str, float] = field(default_factory=dict)
    native_s: float = 0.0
    bytes_up: int = 0
    problem: str | None = None
    judged: Judged | None = None

    @property
    def is_early(self) -> bool:
        """Whether the exit has answered, so that nothing travels."""
        return self.judged is not None and self.judged.is_early


class Head:
    """The device's side of one artifact.

    Args:
        artifact: the verified artifact.
        chain: its loaded segments.
        slowdown: stretch the wall time of everything computed here, to stand in for a slower
            processor; 1 leaves it alone.
        exits: by position, what may answer behind the head.

    Raises:
        UsageError: an artifact without preprocessing.
        IntegrityError: codec tables that differ from their hash.
        CodecError: codec tables that do not fit their cut.
    """

    def __init__(
        self,
        artifact: Artifact,
        chain: Chain,
        slowdown: float = 1.0,
        exits: Mapping[int, Gate] | None = None,
    ) -> None:
        manifest = artifact.manifest
        if manifest.preprocess is None or len(manifest.inputs) != 1:
            raise UsageError(
                f"{artifact.root}: the agent feeds pictures, and this artifact has no preprocessing"
                " for them; split again with --recipe FILE"
            )
        self.artifact = artifact
        self._preprocess = manifest.preprocess
        self._chain = chain
        self._codecs = Codecs(artifact)
        self._slowdown = slowdown
        self.exits = dict(exits or {})

    def plan(self, cut: str, codec_name: str, quality: float | None = None) -> Plan:
        """Make a plan, refusing what cannot work.

        Args:
            cut: name of the position.
            codec_name: a key of `CODECS`.
            quality: of a picture codec, or the agreement in percent that step-ans shall promise.

        Raises:
            UsageError: no such cut, codec or quality, no tables for step-ans at this cut, or a
                picture codec behind the input.
        """
        position = self.artifact.manifest.position(cut)
        codec = self._codecs.encoder(codec_name, position, quality)
        if codec.takes_pixels and position != 0:
            raise UsageError(
                f"codec {codec.name} carries pictures; it needs --cut input, not {cut}"
            )
        if isinstance(self.artifact.manifest.defence(position), Withdrawn):
            raise UsageError(f"cut {cut} is withdrawn: nothing may cross there; take another")
        return Plan(cut, position, codec)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the input that one picture becomes."""
        return self._preprocess.shape

    def is_local(self, plan: Plan) -> bool:
        """Whether the plan answers on the device alone."""
        return plan.position == len(self._chain)

    def run(
        self,
        content: bytes,
        plan: Plan,
        history: History | None = None,
        *,
        encodes: bool = True,
        may_exit: bool = False,
    ) -> Work:
        """Decode a picture, run the head, ask the exit, encode what it did not answer.

        Args:
            content: the picture's file.
            plan: where to cut, and how to encode.
            history: what the features may be coded by; None codes them by themselves.
            encodes: False leaves the encoding to a call of `encode`.
            may_exit: whether the cut's exit may answer, where it has one.

        Raises:
            PictureError: not a picture.
        """
        work = Work(plan.position, {})
        pixels = self._timed(work, "picture", decode_picture, content, self._preprocess)
        values = self._timed(work, "normalise", normalise, pixels, self._preprocess)
        name = self.artifact.manifest.inputs[0].name
        run = self._chain.run
        work.tensors = self._timed(work, "head", run, {name: values}, 0, plan.position)
        work.pixels = pixels if plan.codec.takes_pixels else None
        gate = self.exits.get(plan.position) if may_exit else None
        if gate is not None:
            work.judged = self._timed(work, "exit", gate.judge, work.tensors)
        if encodes and not work.is_early and not self.is_local(plan):
            self.encode(work, plan, history)
        return work

    def encode(self, work: Work, plan: Plan, history: History | None = None) -> None:
        """Turn the features, or the picture, into the sections of a frame."""
        try:
            work.sections, work.coded = self._timed(
                work, "encode", self._encode, work, plan, history
            )
        except CodecError as error:
            work.problem = str(error)

    def _encode(
        self, work: Work, plan: Plan, history: History | None
    ) -> tuple[tuple[Section, ...], Coded | None]:
        carried = self._egress(work) if work.pixels is None else [work.pixels[None]]
        return _encode(plan, carried, history)

    def _egress(self, work: Work) -> list[Array]:
        manifest = self.artifact.manifest
        tensors = [work.tensors[spec.name] for spec in manifest.egress(work.position)]
        return defend(manifest.defence(work.position), tensors)

    def make_whole(self, work: Work, plan: Plan) -> None:
        """Encode the same integers again, by themselves: the cloud may decode them at any time."""
        if work.coded is not None and isinstance(plan.codec, StepAnsCodec):
            arguments = plan.codec, work.sections, work.coded.symbols
            work.sections = self._timed(work, "encode_whole", _pack, *arguments)
            work.coded = replace(work.coded, built_on=None)

    def finish(self, work: Work) -> Mapping[str, Array]:
        """Run the rest of the model here, from the features at hand; of an early answer nothing."""
        if work.judged is not None and work.judged.is_early:
            return work.judged.outputs
        return self._timed(
            work, "edge_tail", self._chain.run, work.tensors, work.position, len(self._chain)
        )

    def warm_up(self, plans: Sequence[Plan]) -> list[float]:
        """Run every plan's head and codec, then the model segment by segment, on a blank input.

        Returns:
            For every position, the seconds that `finish` takes from there: medians of three runs
            after a first one that pays for allocations.
        """
        spec = self.artifact.manifest.inputs[0]
        blank = np.zeros(spec.concrete(), spec.dtype)
        for plan in plans:
            tensors = self._chain.run({spec.name: blank}, 0, plan.position)
            work = Work(plan.position, dict(tensors))
            if plan.position in self.exits:
                self.exits[plan.position].head.run(tensors)
            if plan.codec.takes_pixels:
                work.pixels = np.zeros((*self._preprocess.crop, 3), np.uint8)
            if not self.is_local(plan):
                self.encode(work, plan)
        count = len(self._chain)
        runs = []
        for _ in range(4):
            tensors = {spec.name: blank}
            work = Work(0, tensors)
            for start in range(count):
                stage = str(start)
                tensors = self._timed(work, stage, self._chain.run, tensors, start, start + 1)
            runs.append([work.stages_s[str(start)] for start in range(count)])
        segments_s = np.median(runs[1:], axis=0)
        return [float(segments_s[position:].sum()) for position in range(count + 1)]

    def _timed(
        self, work: Work, stage: str, call: Callable[..., Result], *arguments: object
    ) -> Result:
        """Run one stage, stretch it, and note its seconds."""
        started = time.perf_counter()
        result = call(*arguments)
        native_s = time.perf_counter() - started
        work.native_s += native_s
        if self._slowdown > 1:
            time.sleep(native_s * (self._slowdown - 1))
        work.stages_s[stage] = time.perf_counter() - started
        return result


def _encode(
    plan: Plan, tensors: Sequence[Array], history: History | None
) -> tuple[tuple[Section, ...], Coded | None]:
    codec = plan.codec
    if history is None or not isinstance(codec, StepAnsCodec):
        sections = [Section(t.shape, codec.encode(t, index)) for index, t in enumerate(tensors)]
        return tuple(sections), None
    symbols = [codec.quantise(t, i) for i, t in enumerate(tensors) if codec.is_coded(i)]
    known = history.begin(plan.position, codec.parameter, sum(one.room for one in symbols))
    stored = [
        Section(t.shape, b"" if codec.is_coded(i) else codec.encode(t, i))
        for i, t in enumerate(tensors)
    ]
    coded = Coded(tuple(symbols), known.number, known.connection)
    return _pack(codec, stored, symbols, known), coded


def _pack(
    codec: StepAnsCodec,
    sections: Sequence[Section],
    symbols: Sequence[Symbols],
    known: Known | None = None,
) -> tuple[Section, ...]:
    """Put new payloads where the symbols belong; the other sections stay as they are."""
    references = known.references if known else {}
    packed = list(sections)
    for one in symbols:
        payload = codec.pack(one, references.get(one.index))
        packed[one.index] = Section(packed[one.index].shape, payload)
    return tuple(packed)
