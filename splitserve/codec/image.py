"""`jpeg` and `webp`: the picture itself at position 0, the rivals of every cut."""

from typing import ClassVar

import numpy as np

from splitserve.codec.symbols import References
from splitserve.errors import CodecError, PictureError
from splitserve.picture import PictureFormat, decode_pixels, encode_pixels
from splitserve.tensors import Array

JPEG_SCAN = b"\xff\xda"
JPEG_SCANS_LIMIT = 64  # a scan of 12 bytes costs a pass over the picture; encoders write 1 to 12


class _PictureCodec:
    """Pixels (1, height, width, 3), uint8, RGB, as a file of one picture format.

    Args:
        quality: 1 to 100, None for the format's default.
    """

    takes_pixels: ClassVar[bool] = True
    parameter = 0
    picture_format: ClassVar[PictureFormat]
    default_quality: ClassVar[int]

    def __init__(self, quality: int | None = None) -> None:
        self.quality = self.default_quality if quality is None else quality

    def encode(self, tensor: Array, index: int = 0) -> bytes:  # noqa: ARG002
        """Compress one picture.

        Raises:
            CodecError: not (1, height, width, 3) uint8.
        """
        _check(tensor.shape, str(tensor.dtype))
        return encode_pixels(tensor[0], self.picture_format, self.quality)

    def decode(
        self,
        payload: memoryview,
        shape: tuple[int, ...],
        dtype: str,
        index: int = 0,  # noqa: ARG002
        references: References | None = None,  # noqa: ARG002
    ) -> Array:
        """Decompress a picture of exactly this shape.

        Raises:
            CodecError: another shape, format or size, too many scans, or a broken file.
        """
        _check(shape, dtype)
        content = bytes(payload)
        scans = content.count(JPEG_SCAN)
        if self.picture_format == "JPEG" and scans > JPEG_SCANS_LIMIT:
            raise CodecError(f"a JPEG of {scans} scans is over the limit of {JPEG_SCANS_LIMIT}")
        try:
            return decode_pixels(content, self.picture_format, shape[1], shape[2])[None]
        except PictureError as error:
            raise CodecError(str(error)) from error


class JpegCodec(_PictureCodec):
    """JPEG, 4:2:0."""

    name: ClassVar[str] = "jpeg"
    number: ClassVar[int] = 3
    picture_format: ClassVar[PictureFormat] = "JPEG"
    default_quality: ClassVar[int] = 90


class WebpCodec(_PictureCodec):
    """Lossy WebP."""

    name: ClassVar[str] = "webp"
    number: ClassVar[int] = 4
    picture_format: ClassVar[PictureFormat] = "WEBP"
    default_quality: ClassVar[int] = 80


def _check(shape: tuple[int, ...], dtype: str) -> None:
    is_picture = len(shape) == 4 and shape[0] == 1 and shape[3] == 3 and min(shape) > 0
    if not is_picture or np.dtype(dtype) != np.uint8:
        raise CodecError(f"a picture codec takes (1, h, w, 3) uint8, not {list(shape)} {dtype}")
