"""Features to payload and back; CODECS is the table, numbers on the wire are never reused.

`raw` and `affine-u8` take the features at any cut; `jpeg` and `webp` take the picture itself at
position 0. Payload formats: docs/wire.md.
"""

from typing import ClassVar, Protocol

from splitserve.codec.affine import AffineCodec
from splitserve.codec.image import JpegCodec, WebpCodec
from splitserve.codec.raw import RawCodec
from splitserve.errors import CodecError, UsageError
from splitserve.tensors import Array


class Codec(Protocol):
    """One way to turn a tensor into bytes and back. Decoding is total and bounded by the shape."""

    name: ClassVar[str]
    number: ClassVar[int]
    takes_pixels: ClassVar[bool]

    def encode(self, tensor: Array) -> bytes:
        """Turn one tensor into a payload."""
        ...

    def decode(self, payload: memoryview, shape: tuple[int, ...], dtype: str) -> Array:
        """Turn a payload back into a tensor of exactly this shape and dtype."""
        ...


CODECS: dict[str, type[RawCodec | AffineCodec | JpegCodec | WebpCodec]] = {
    "raw": RawCodec,
    "affine-u8": AffineCodec,
    "jpeg": JpegCodec,
    "webp": WebpCodec,
}


def build_codec(name: str, quality: int | None = None) -> Codec:
    """Make a codec by name.

    Args:
        name: a key of `CODECS`.
        quality: 1 to 100 for a picture codec, None for its default; refused elsewhere.

    Raises:
        UsageError: an unknown name, a quality out of range, or one for a codec that has none.
    """
    if name not in CODECS:
        raise UsageError(f"no codec {name!r}; there are: {', '.join(CODECS)}")
    kind = CODECS[name]
    if issubclass(kind, JpegCodec | WebpCodec):
        if quality is not None and not 1 <= quality <= 100:
            raise UsageError(f"--quality {quality} is not 1 to 100")
        return kind(quality)
    if quality is not None:
        raise UsageError(f"--quality is for jpeg and webp; codec {name!r} has none")
    return kind()


def codec_by_number(number: int) -> Codec:
    """Find the codec that a frame names.

    Raises:
        CodecError: no codec has this number.
    """
    for kind in CODECS.values():
        if kind.number == number:
            return kind()
    raise CodecError(f"unknown codec number {number}")


__all__ = [
    "CODECS",
    "AffineCodec",
    "Codec",
    "JpegCodec",
    "RawCodec",
    "WebpCodec",
    "build_codec",
    "codec_by_number",
]
