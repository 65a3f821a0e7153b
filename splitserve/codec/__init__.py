"""Features to payload and back; CODECS is the table, numbers on the wire are never reused.

`raw` and `affine-u8` take the features at any cut; `step-ans` takes them where the artifact was
calibrated; `jpeg` and `webp` take the picture itself at position 0. Payload formats: docs/wire.md
and docs/codec.md.
"""

from splitserve.codec.affine import AffineCodec
from splitserve.codec.choice import (
    CODECS,
    Codec,
    Codecs,
    build_codec,
    codec_by_number,
    reply_codec,
)
from splitserve.codec.image import JpegCodec, WebpCodec
from splitserve.codec.raw import RawCodec
from splitserve.codec.step import StepAnsCodec, coarse_part, step_size
from splitserve.codec.symbols import STREAM_ELEMENTS_MAX, References, Symbols
from splitserve.codec.tables import FeatureTables, read_tables, write_tables
from splitserve.codec.threads import use_one_thread
from splitserve.codec.top import TopCodec
from splitserve.codec.transform import Transform, round_to_dtype

__all__ = [
    "CODECS",
    "STREAM_ELEMENTS_MAX",
    "AffineCodec",
    "Codec",
    "Codecs",
    "FeatureTables",
    "JpegCodec",
    "RawCodec",
    "References",
    "StepAnsCodec",
    "Symbols",
    "TopCodec",
    "Transform",
    "WebpCodec",
    "build_codec",
    "coarse_part",
    "codec_by_number",
    "read_tables",
    "reply_codec",
    "round_to_dtype",
    "step_size",
    "use_one_thread",
    "write_tables",
]
