"""What the stages are fed with: the operator's pictures, or seeded noise."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from splitserve.artifact import Manifest, Preprocess
from splitserve.errors import PictureError, UsageError
from splitserve.picture import decode_picture, encode_pixels, list_pictures
from splitserve.tensors import DTYPES, Array, Tensors, TensorSpec

NOISE_INPUTS = 5
NOISE_QUALITY = 90
NOISE_MARGIN = 1.5  # a camera's frame is larger than the crop
OCTAVES = 6
VALUES_BELOW = 256  # of noise in integer tensors


@dataclass(frozen=True, slots=True)
class Inputs:
    """Inputs in the order of use.

    Args:
        kind: where they come from.
        contents: picture files; empty for a model that takes no pictures.
        tensors: the model's inputs, where they are no pictures.
        sha256: of the contents, one after another.
    """

    kind: Literal["files", "noise"]
    contents: Sequence[bytes]
    tensors: Sequence[Tensors]
    sha256: str

    def __len__(self) -> int:
        return len(self.contents) or len(self.tensors)


def gather_inputs(images: Path | None, manifest: Manifest, limit: int, seed: int) -> Inputs:
    """Read up to `limit` pictures of a folder in a drawn order, or draw noise without a folder.

    Raises:
        UsageError: no pictures there, or a folder for a model that takes no pictures.
        PictureError: a damaged picture; the message names the file.
    """
    generator = np.random.default_rng(seed)
    if manifest.preprocess is None:
        if images is not None:
            raise UsageError(
                "--images: this model takes no pictures; leave it out, its inputs are then noise"
            )
        drawn = [
            {spec.name: _noise(spec, generator) for spec in manifest.inputs}
            for _ in range(NOISE_INPUTS)
        ]
        blobs = [array.tobytes() for tensors in drawn for array in tensors.values()]
        return Inputs("noise", [], drawn, _digest(blobs))
    if images is None:
        noise = [noise_picture(manifest.preprocess, generator) for _ in range(NOISE_INPUTS)]
        return Inputs("noise", noise, [], _digest(noise))
    paths = list_pictures(images)
    order = generator.permutation(len(paths))[:limit]
    contents = [_read(paths[index], manifest.preprocess) for index in order]
    return Inputs("files", contents, [], _digest(contents))


def noise_picture(preprocess: Preprocess, generator: np.random.Generator) -> bytes:
    """Draw a JPEG whose detail falls off with its frequency, as in photographs."""
    side = int(preprocess.resize_short_side * NOISE_MARGIN)
    values = np.zeros((side, side, 3))
    for octave in range(1, OCTAVES + 1):
        cells = min(side, 2**octave)
        coarse = generator.normal(0, 90 / octave, (cells, cells, 3))
        at = np.arange(side) * cells // side
        values += coarse[np.ix_(at, at)]
    pixels = np.clip(values + 127, 0, 255).astype(np.uint8)
    return encode_pixels(pixels, "JPEG", NOISE_QUALITY)


def _read(path: Path, preprocess: Preprocess) -> bytes:
    try:
        content = path.read_bytes()
        decode_picture(content, preprocess)
    except OSError as error:
        raise PictureError(f"{path}: {error.strerror}") from error
    except PictureError as error:
        raise PictureError(f"{path}: {error}") from error
    return content


def _noise(spec: TensorSpec, generator: np.random.Generator) -> Array:
    dtype, shape = DTYPES[spec.dtype], spec.concrete()
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    if dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(dtype)
    top = min(VALUES_BELOW, int(np.iinfo(dtype).max) + 1)
    return generator.integers(0, top, shape).astype(dtype)


def _digest(blobs: Sequence[bytes]) -> str:
    digest = hashlib.sha256()
    for blob in blobs:
        digest.update(blob)
    return digest.hexdigest()
