"""The stages of one request, as agent and service run them, and a watch that stretches time."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from splitserve.artifact import Artifact
from splitserve.codec import TopCodec
from splitserve.errors import CodecError
from splitserve.picture import Pixels, normalise
from splitserve.profile.carrier import Carrier
from splitserve.runtime import Chain
from splitserve.tensors import Array, Tensors
from splitserve.wire import NO_ID, Reply, Section, Timings, encode_frame

REPLY_CODEC = TopCodec()  # as agents ask for it

Result = TypeVar("Result")


class Span(NamedTuple):
    """Seconds of one run: as they passed, and without stretching."""

    wall_s: float
    native_s: float

    def plus(self, *others: "Span") -> "Span":
        """This and the others, one after another."""
        return Span(
            self.wall_s + sum(other.wall_s for other in others),
            self.native_s + sum(other.native_s for other in others),
        )


NOTHING = Span(0.0, 0.0)


@dataclass(slots=True)
class Watch:
    """Times calls; a slowdown stretches their wall time, as the agent's does.

    Args:
        slowdown: factor; 1 leaves the time alone.
        idle_s: how long a machine waits for its next request.
        total: all that was timed.
    """

    slowdown: float = 1.0
    idle_s: float = 0.0
    total: Span = field(default=NOTHING)

    def rest(self) -> None:
        """Wait as a machine does before a request: what comes next finds threads asleep."""
        if self.idle_s:
            time.sleep(self.idle_s)

    def time(self, call: Callable[..., Result], *arguments: object) -> tuple[Result, Span]:
        """Run one stage, stretch it, and tell how long it took."""
        started = time.perf_counter()
        result = call(*arguments)
        native_s = time.perf_counter() - started
        if self.slowdown > 1:
            time.sleep(native_s * (self.slowdown - 1))
        span = Span(time.perf_counter() - started, native_s)
        self.total = self.total.plus(span)
        return result, span


class Stages:
    """What head and tail do with one input.

    Args:
        artifact: the verified artifact.
        chain: its loaded segments.
    """

    def __init__(self, artifact: Artifact, chain: Chain) -> None:
        self._artifact = artifact
        self._chain = chain
        self.end = len(chain)

    def walk(self, tensors: Tensors) -> list[Tensors]:
        """The features at every position, from the input to the output, segment by segment."""
        found = [tensors]
        for position in range(self.end):
            found.append(self._chain.run(found[-1], position, position + 1))
        return found

    def head(self, tensors: Tensors, position: int) -> Tensors:
        """Run the head up to a position; in one piece where the artifact stores it so."""
        return self._chain.run(tensors, 0, position)

    def finish(self, features: Tensors, position: int) -> Tensors:
        """Run the tail from a position."""
        return self._chain.run(features, position, self.end)

    def tail(self, features: Tensors, position: int) -> list[bytes]:
        """Run the tail from a position, and encode the reply."""
        outputs = self.finish(features, position)
        specs = self._artifact.manifest.outputs
        return [REPLY_CODEC.encode(outputs[spec.name]) for spec in specs]

    def reply_bytes(self, outputs: Tensors) -> int:
        """Bytes of the frame that carries the outputs back."""
        arrays = [outputs[spec.name] for spec in self._artifact.manifest.outputs]
        sections = tuple(Section(array.shape, REPLY_CODEC.encode(array)) for array in arrays)
        return len(encode_frame(Reply(NO_ID, NO_ID, 0, REPLY_CODEC.number, sections, Timings())))

    def carried(self, carrier: Carrier, pixels: Pixels | None, features: Tensors) -> list[Array]:
        """What a carrier takes: the picture itself, or the egress tensors in their order."""
        if carrier.codec.takes_pixels:
            if pixels is None:
                raise CodecError("no picture for a picture codec")
            return [pixels[None]]
        specs = self._artifact.manifest.egress(carrier.position)
        return [features[spec.name] for spec in specs]

    def receive(self, carrier: Carrier, payloads: list[bytes], like: list[Array]) -> Tensors:
        """Decode what a carrier sent, as the service does: the features, by name."""
        decoded = carrier.decode(payloads, like)
        manifest = self._artifact.manifest
        names = [spec.name for spec in manifest.egress(carrier.position)]
        if carrier.codec.takes_pixels and manifest.preprocess is not None:
            decoded = [normalise(decoded[0][0], manifest.preprocess)]
        return dict(zip(names, decoded, strict=True))
