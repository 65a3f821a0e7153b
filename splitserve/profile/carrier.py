"""Every way to carry what crosses at a position: which there are, and doing it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from splitserve.artifact import Artifact, Defence, Estimate, Withdrawn
from splitserve.codec import Codec, Codecs, JpegCodec, StepAnsCodec, WebpCodec
from splitserve.defence import defend
from splitserve.tensors import Array
from splitserve.wire import NO_ID, Request, Section, encode_frame

DEADLINE_S = 1.0  # any; the header has room for one in any case


@dataclass(slots=True)
class Carrier:
    """One codec setting at one position, and what was seen of it.

    Args:
        position: where it works.
        codec: the codec.
        quality: of a picture codec; for step-ans the floor that names the rate.
        defence: of the cut.
        agreement: with the unsplit model, where the manifest knows it.
        agreement_on: inputs that it was measured on.
        sizes: bytes of request frames.
        hits: whether the answers were those of the unsplit model.
        is_lossless: whether every tensor came back bit for bit.
        problem: why it cannot carry the features.
    """

    position: int
    codec: Codec
    quality: float | None = None
    defence: Defence | None = None
    agreement: Estimate | None = None
    agreement_on: int = 0
    sizes: list[int] = field(default_factory=list)
    hits: list[bool] = field(default_factory=list)
    is_lossless: bool = True
    problem: str | None = None

    def encode(self, tensors: Sequence[Array]) -> list[bytes]:
        """Turn the tensors into payloads, behind the defence."""
        guarded = defend(self.defence, tensors)
        return [self.codec.encode(tensor, index) for index, tensor in enumerate(guarded)]

    def decode(self, payloads: Sequence[bytes], like: Sequence[Array]) -> list[Array]:
        """Turn payloads back into tensors of the shapes and types of `like`."""
        return [
            self.codec.decode(memoryview(payload), tensor.shape, str(tensor.dtype), index)
            for index, (payload, tensor) in enumerate(zip(payloads, like, strict=True))
        ]

    def frame_bytes(self, tensors: Sequence[Array], payloads: Sequence[bytes]) -> int:
        """Bytes of the request frame, everything counted."""
        sections = tuple(
            Section(tensor.shape, payload)
            for tensor, payload in zip(tensors, payloads, strict=True)
        )
        parameter = self.codec.parameter
        number, position = self.codec.number, self.position
        request = Request(NO_ID, NO_ID, position, number, sections, DEADLINE_S, parameter)
        return len(encode_frame(request))


def list_carriers(
    artifact: Artifact, jpeg_qualities: Sequence[int], webp_qualities: Sequence[int]
) -> list[Carrier]:
    """List the candidates of every position but the output, as the agent would build them.

    Nothing is listed for a cut that is withdrawn.
    """
    manifest, codecs = artifact.manifest, Codecs(artifact)
    carriers = []
    if manifest.preprocess is not None:
        for name, qualities in (
            (JpegCodec.name, jpeg_qualities), (WebpCodec.name, webp_qualities),
        ):  # fmt: skip
            carriers += [Carrier(0, codecs.encoder(name, 0, q), q) for q in sorted(set(qualities))]
    for position in range(len(manifest.cuts) + 1):
        defence = manifest.defence(position)
        if isinstance(defence, Withdrawn):
            continue
        calibration = manifest.cuts[position - 1].calibration if position else None
        floors = {rate.floor: rate for rate in calibration.rates} if calibration else {}
        for floor, rate in sorted(floors.items(), reverse=True):
            codec = codecs.encoder(StepAnsCodec.name, position, floor)
            seen_on = calibration.measured_on if calibration else 0
            carriers.append(Carrier(position, codec, floor, defence, rate.agreement, seen_on))
        for name in ("affine-u8", "raw"):
            carriers.append(Carrier(position, codecs.encoder(name, position), defence=defence))
    return carriers
