"""Inputs to calibrate on: pictures of a folder, or stored tensors for models that take none."""

import hashlib
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splitserve.artifact import Manifest
from splitserve.calibrate.motion import Pixels
from splitserve.errors import PictureError, UsageError
from splitserve.picture import decode_picture, list_pictures, normalise, read_labels
from splitserve.tensors import DTYPES, Tensors, TensorSpec, mismatch

LABELS = "labels.csv"
INPUTS_MIN = 20
NAME_DIGITS = 16  # of a file's sha256: by chance none of a million pictures meets one of a thousand
# A single array is no archive (TypeError), and what is no array in one is bytes (AttributeError).
BROKEN_NPZ = (
    KeyError, ValueError, OSError, EOFError, TypeError, AttributeError, zipfile.BadZipFile,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Inputs:
    """Inputs in a drawn order; the first half is for fitting, the other for measuring.

    Args:
        pixels: what each picture looks like to the model, (height, width, 3); empty without any.
        tensors: the model's inputs, (1, ...) each, where they are no pictures.
        labels: right classes; empty where they are not known.
        sha256: of the files' contents in this order.
        names: the first 16 digits of each file's own sha256, in this order.
    """

    pixels: Sequence[Pixels]
    tensors: Sequence[Tensors]
    labels: Sequence[int]
    sha256: str
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.pixels) or len(self.tensors)


def read_inputs(folder: Path, manifest: Manifest, limit: int, seed: int) -> Inputs:
    """Read up to `limit` inputs of a folder in a drawn order.

    Pictures, with labels.csv where it is there; for a model without preprocessing, .npz files that
    hold one array per model input: a free first dimension is the batch and is 1, and the other
    free ones have one size in all files.

    Raises:
        UsageError: nothing fitting there, fewer than 20 inputs, or inputs of several sizes.
        PictureError: a damaged picture; the message names the file.
    """
    labels: dict[Path, int] = {}
    if manifest.preprocess is None:
        paths = sorted(folder.glob("*.npz"))
    elif (folder / LABELS).is_file():
        labels = dict(read_labels(folder))
        paths = sorted(labels)
    else:
        paths = list_pictures(folder)
    if len(paths) < INPUTS_MIN:
        kind = "pictures" if manifest.preprocess else ".npz files with the model's inputs"
        raise UsageError(f"{folder}: {len(paths)} {kind}; at least {INPUTS_MIN} are needed")
    order = np.random.default_rng(seed).permutation(len(paths))[:limit]
    chosen = [paths[index] for index in order]
    digest = hashlib.sha256()
    contents = []
    for path in chosen:
        content = path.read_bytes()
        digest.update(content)
        contents.append(content)
    return Inputs(
        pixels=_pictures(chosen, contents, manifest),
        tensors=_tensors(chosen, contents, manifest),
        labels=[labels[path] for path in chosen] if labels else [],
        sha256=digest.hexdigest(),
        names=[hashlib.sha256(content).hexdigest()[:NAME_DIGITS] for content in contents],
    )


def model_input(pixels: Pixels, manifest: Manifest) -> Tensors:
    """Turn a picture's pixels into the model's input."""
    if manifest.preprocess is None:
        raise UsageError("a model without preprocessing takes no pictures")
    return {manifest.inputs[0].name: normalise(pixels, manifest.preprocess)}


def _pictures(paths: Sequence[Path], contents: Sequence[bytes], manifest: Manifest) -> list[Pixels]:
    if manifest.preprocess is None:
        return []
    pictures = []
    for path, content in zip(paths, contents, strict=True):
        try:
            pictures.append(decode_picture(content, manifest.preprocess))
        except PictureError as error:
            raise PictureError(f"{path}: {error}") from error
    return pictures


def _tensors(paths: Sequence[Path], contents: Sequence[bytes], manifest: Manifest) -> list[Tensors]:
    if manifest.preprocess:
        return []
    inputs = [
        _arrays(path, content, manifest) for path, content in zip(paths, contents, strict=True)
    ]
    for spec in manifest.inputs:
        _refuse_several_sizes(paths, inputs, spec)
    return inputs


def _refuse_several_sizes(
    paths: Sequence[Path], inputs: Sequence[Tensors], spec: TensorSpec
) -> None:
    """Tables are fitted to features that lie on one another."""
    first = inputs[0][spec.name].shape
    for path, tensors in zip(paths, inputs, strict=True):
        shape = tensors[spec.name].shape
        if shape != first:
            raise UsageError(
                f"{spec.name} is {_sizes(first)} in {paths[0]} and {_sizes(shape)} in {path}: make"
                " all inputs one size; splitserve split --shape fixes it in the artifact"
            )


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape) or "a scalar"


def _arrays(path: Path, content: bytes, manifest: Manifest) -> Tensors:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            tensors = {
                spec.name: stored[spec.name].astype(DTYPES[spec.dtype], copy=False)
                for spec in manifest.inputs
            }
    except BROKEN_NPZ as error:
        names = ", ".join(spec.name for spec in manifest.inputs)
        raise UsageError(f"{path}: needs one array for each of {names}: {error}") from error
    problem = mismatch(manifest.inputs, [tensors[spec.name].shape for spec in manifest.inputs])
    if problem:
        raise UsageError(f"{path}: {problem}")
    for spec in manifest.inputs:
        count = tensors[spec.name].shape[:1]
        if count != (1,) and isinstance(next(iter(spec.shape), None), str):
            raise UsageError(
                f"{path}: {spec.name} holds {count[0]} inputs; store one in each file, batch 1"
            )
    return tensors
