"""A calibrated copy of a small artifact, without the search for rates, and pictures that move."""

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splitserve.artifact import (
    Artifact,
    Calibration,
    Estimate,
    Rate,
    StoredFile,
    load_artifact,
    write_artifact,
)
from splitserve.calibrate.fit import Weights, channel_axis, fit_tables, plain_tables
from splitserve.calibrate.motion import fit_motion
from splitserve.codec import FeatureTables, write_tables
from splitserve.picture import normalise
from splitserve.runtime import Chain, RuntimeOptions, open_chain
from splitserve.tensors import Array, TensorSpec

PARAMETERS = {99.9: 476, 99.0: 488, 95.0: 504}
FITTED_ON = 16
CODED_ELEMENTS_MIN = 64

Pixels = NDArray[np.uint8]


def calibrate_tiny(source: Path, target: Path) -> Artifact:
    """Copy an artifact with codec tables for every tensor that is not tiny.

    The rates are made up: nothing here measures agreement.
    """
    artifact = load_artifact(source)
    manifest = artifact.manifest
    chain = open_chain(artifact, RuntimeOptions(threads=1))
    contents = {stored.file: artifact.read_file(stored) for stored in manifest.files}
    cuts = []
    for position, cut in enumerate(manifest.cuts, 1):
        content = write_tables(_fit(artifact, chain, position))
        name = f"t{position}.npz"
        contents[name] = content
        cuts.append(cut.model_copy(update={"calibration": _calibration(name, content)}))
    return write_artifact(target, manifest.model_copy(update={"cuts": tuple(cuts)}), contents)


def _fit(artifact: Artifact, chain: Chain, position: int) -> list[FeatureTables | None]:
    streams = [moving_pixels(artifact, seed, 2) for seed in range(FITTED_ON)]
    known, after = (
        [_features(artifact, chain, position, stream[turn]) for stream in streams]
        for turn in (0, 1)
    )
    tables: list[FeatureTables | None] = []
    for spec in artifact.manifest.egress(position):
        before, behind = (
            np.concatenate([frame[spec.name] for frame in frames]) for frames in (known, after)
        )
        coded = spec.elements() >= CODED_ELEMENTS_MIN
        tables.append(_fit_tensor(spec, before, behind) if coded else None)
    return tables


def _fit_tensor(spec: TensorSpec, before: Array, behind: Array) -> FeatureTables:
    plain = plain_tables(before, channel_axis(spec, channels_last=False))
    fitted = fit_tables(before, plain, Weights(plain.gain, plain.bands))
    return fit_motion(fitted, before, [before, behind])


def _features(artifact: Artifact, chain: Chain, position: int, pixels: Pixels) -> dict[str, Array]:
    preprocess = artifact.manifest.preprocess
    assert preprocess is not None
    values = normalise(pixels, preprocess)
    return dict(chain.run({artifact.manifest.inputs[0].name: values}, 0, position))


def _calibration(name: str, content: bytes) -> Calibration:
    sha256 = hashlib.sha256(content).hexdigest()
    rates = [
        Rate(
            floor=floor,
            parameter=parameter,
            agreement=Estimate(value=floor, low=floor - 1, high=100),
            bytes_mean=1500.0,
            bytes_p95=1800.0,
        )
        for floor, parameter in PARAMETERS.items()
    ]
    return Calibration(
        tables=StoredFile(file=name, sha256=sha256, bytes=len(content)),
        rates=tuple(rates),
        fitted_on=FITTED_ON,
        measured_on=100,
        inputs_sha256=sha256,
        seed=0,
        agreement_is="argmax",
    )


def moving_pixels(artifact: Artifact, seed: int, count: int) -> list[Pixels]:
    """A stream: a smooth scene that moves one pixel to the right with every frame, and noise.

    Returns:
        (height, width, 3), uint8, of the size that the artifact's preprocessing crops to.
    """
    preprocess = artifact.manifest.preprocess
    assert preprocess is not None
    height, width = preprocess.crop
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (6, 6, 3), np.uint8)
    scene = np.asarray(Image.fromarray(coarse).resize((width + count, height), Image.BICUBIC))
    frames = []
    for turn in range(count):
        noise = generator.normal(0, 0.5, (height, width, 3))
        moved = scene[:, turn : turn + width] + noise
        frames.append(np.rint(moved).clip(0, 255).astype(np.uint8))
    return frames


def write_stream(folder: Path, artifact: Artifact, seed: int, count: int) -> list[Path]:
    """Write a stream's frames as PNG files; they are in the stream's order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for turn, pixels in enumerate(moving_pixels(artifact, seed, count)):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        paths.append(folder / f"{seed}-{turn:03}.png")
        paths[-1].write_bytes(buffer.getvalue())
    return paths


def write_scenes(folder: Path, artifact: Artifact, seeds: Iterable[int]) -> Path:
    """Write one still picture for every seed, and labels that mean nothing."""
    rows = ["file,label"]
    for seed in seeds:
        (path,) = write_stream(folder, artifact, seed, 1)
        rows.append(f"{path.name},{seed % 10}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder
