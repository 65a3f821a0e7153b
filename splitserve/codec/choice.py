"""The table of codecs, and those that fit one artifact."""

from functools import lru_cache
from typing import ClassVar, Protocol

from splitserve.artifact import Artifact, Rate
from splitserve.codec.affine import AffineCodec
from splitserve.codec.image import JpegCodec, WebpCodec
from splitserve.codec.raw import RawCodec
from splitserve.codec.step import StepAnsCodec
from splitserve.codec.symbols import References
from splitserve.codec.tables import STEP_ZERO, read_tables
from splitserve.codec.top import TopCodec
from splitserve.errors import CodecError, UsageError
from splitserve.tensors import Array

DEFAULT_FLOOR = 99.0
CACHED_CODECS = 8  # a peer chooses the rates, and each keeps some 20 bytes a coefficient


class Codec(Protocol):
    """One way to turn a tensor into bytes and back. Decoding is total and bounded by the shape.

    `parameter` travels in the frame's header; `index` says which egress tensor of the cut it is.
    """

    name: ClassVar[str]
    number: ClassVar[int]
    takes_pixels: ClassVar[bool]
    parameter: int

    def encode(self, tensor: Array, index: int = 0) -> bytes:
        """Turn one tensor into a payload."""
        ...

    def decode(
        self,
        payload: memoryview,
        shape: tuple[int, ...],
        dtype: str,
        index: int = 0,
        references: References | None = None,
    ) -> Array:
        """Turn a payload back into a tensor of exactly this shape and dtype."""
        ...


PlainCodec = RawCodec | AffineCodec | JpegCodec | WebpCodec

CODECS: dict[str, type[PlainCodec | StepAnsCodec]] = {
    "raw": RawCodec,
    "affine-u8": AffineCodec,
    "jpeg": JpegCodec,
    "webp": WebpCodec,
    "step-ans": StepAnsCodec,
}


def build_codec(name: str, quality: float | None = None) -> PlainCodec:
    """Make a codec that needs no artifact.

    Args:
        name: a key of `CODECS`.
        quality: 1 to 100 for a picture codec, None for its default; refused elsewhere.

    Raises:
        UsageError: an unknown name, one that needs an artifact, a quality out of range, or one for
            a codec that has none.
    """
    if name not in CODECS:
        raise UsageError(f"no codec {name!r}; there are: {', '.join(CODECS)}")
    kind = CODECS[name]
    if issubclass(kind, StepAnsCodec):
        raise UsageError(f"codec {name} needs the tables of a calibrated artifact")
    if issubclass(kind, JpegCodec | WebpCodec):
        if quality is not None and not (1 <= quality <= 100 and quality == int(quality)):
            raise UsageError(f"--quality {quality:g} is not a whole number from 1 to 100")
        return kind(None if quality is None else int(quality))
    if quality is not None:
        raise UsageError(f"--quality is for jpeg, webp and step-ans; codec {name!r} has none")
    return kind()


def codec_by_number(number: int) -> PlainCodec:
    """Find the codec that a frame names, of those that need no artifact.

    Raises:
        CodecError: no such codec has this number.
    """
    for kind in CODECS.values():
        if kind.number == number and not issubclass(kind, StepAnsCodec):
            return kind()
    raise CodecError(f"unknown codec number {number}")


def reply_codec(number: int) -> RawCodec | TopCodec:
    """Find the codec that a reply names.

    Raises:
        CodecError: replies are not coded so.
    """
    if number == TopCodec.number:
        return TopCodec()
    if number == RawCodec.number:
        return RawCodec(exact=True)
    raise CodecError(f"a reply with codec number {number}")


class Codecs:
    """Every codec of one artifact; its tables are read, verified and shared here.

    Args:
        artifact: the folder.

    Raises:
        IntegrityError: tables that differ from their hash.
        CodecError: tables that do not fit their cut.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self._plain: dict[int, StepAnsCodec] = {}
        for position, cut in enumerate(artifact.manifest.cuts, 1):
            content = artifact.read_tables(position)
            if content is not None:
                self._plain[position] = StepAnsCodec(read_tables(content, cut.egress), STEP_ZERO)
        self.step_codec = lru_cache(CACHED_CODECS)(self._step_codec)

    def encoder(self, name: str, position: int, quality: float | None = None) -> Codec:
        """Find the codec for a plan.

        Args:
            name: a key of `CODECS`.
            position: where the plan cuts.
            quality: 1 to 100 for a picture codec; for step-ans the agreement in percent, of which
                the cheapest calibrated rate that promises it is taken. By default that is 99, or
                the most that was reached.

        Raises:
            UsageError: no such codec or quality, or no tables at this position.
        """
        if name != StepAnsCodec.name:
            return build_codec(name, quality)
        rate = self.rate(position, quality)
        return self.step_codec(position, rate.parameter)

    def decoder(self, number: int, position: int, parameter: int) -> Codec:
        """Find the codec that a frame names.

        Raises:
            CodecError: unknown, without tables at this position, or a parameter out of range.
        """
        if number != StepAnsCodec.number:
            if parameter:
                raise CodecError(f"codec number {number} takes no parameter, not {parameter}")
            return codec_by_number(number)
        if position not in self._plain:
            raise CodecError(f"step-ans has no tables at position {position}")
        return self.step_codec(position, parameter)

    def rate(self, position: int, quality: float | None = None) -> Rate:
        """The cheapest calibrated rate of step-ans that promises an agreement in percent.

        Raises:
            UsageError: no tables at this position, or none so good.
        """
        manifest = self._artifact.manifest
        where = manifest.positions[position]
        is_cut = 1 <= position <= len(manifest.cuts)
        calibration = manifest.cuts[position - 1].calibration if is_cut else None
        if calibration is None:
            fix = (
                f"run: splitserve calibrate {self._artifact.root} --images DIR"
                if is_cut
                else "it works at cuts only"
            )
            raise UsageError(f"step-ans has no tables at {where}; {fix}")
        if not calibration.rates:
            raise UsageError(
                f"step-ans has no rate at {where}, for its calibration reached no floor; run:"
                f" splitserve calibrate {self._artifact.root} --images DIR --floors LOWER, or take"
                " --codec affine-u8"
            )
        most = max(rate.floor for rate in calibration.rates)
        floor = min(DEFAULT_FLOOR, most) if quality is None else quality
        good = [rate for rate in calibration.rates if rate.floor >= floor]
        if not good:
            known = ", ".join(f"{rate.floor:g}" for rate in calibration.rates)
            raise UsageError(f"no rate for {floor:g} % agreement at {where}; there are: {known}")
        return min(good, key=lambda rate: rate.floor)

    def _step_codec(self, position: int, parameter: int) -> StepAnsCodec:
        return self._plain[position].at(parameter)
