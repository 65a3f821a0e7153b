"""`splitserve bench temporal`: bytes of a moving picture, each frame alone and after the last."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from splitserve.artifact import Preprocess, load_artifact
from splitserve.bench.samples import sample_folder
from splitserve.calibrate import frame_bytes, model_input
from splitserve.codec import Codecs, References, StepAnsCodec, Symbols
from splitserve.defence import defend
from splitserve.errors import UsageError
from splitserve.output import print_document
from splitserve.picture import Pixels, cut_views, list_pictures
from splitserve.runtime import RuntimeOptions, open_chain
from splitserve.settings import Names, Settings

SAMPLES = ("coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png")
SHARE = 0.55
REFERENCE_PIXELS = 224


@dataclass(frozen=True, slots=True)
class Motion:
    """How the view moves from frame to frame.

    Args:
        name: for the table.
        pan: pixels of a view 224 pixels high.
        zoom: factor.
    """

    name: str
    pan: float = 0.0
    zoom: float = 1.0


MOTIONS = (
    Motion("still"),
    Motion("pan 0.5 px", pan=0.5),
    Motion("pan 1 px", pan=1),
    Motion("pan 2 px", pan=2),
    Motion("pan 4 px", pan=4),
    Motion("zoom 0.5 %", zoom=0.995),
)


class Options(Settings):
    """Move a view over photographs and code every frame alone and after the last one.

    Every frame carries fresh sensor noise. Both ways decode to the same integers, so the answers
    are the same bit for bit; only the bytes differ.
    """

    model_config = SettingsConfigDict(
        cli_prog_name="splitserve bench temporal", env_prefix="SPLITSERVE_BENCH_TEMPORAL_"
    )

    artifact: CliPositionalArg[Path]
    """Calibrated artifact folder."""
    images: Path | None = None
    """Folder of photographs; by default those that come with scikit-image."""
    cuts: Names = Field(default=[])
    """Cuts to measure, comma-separated; by default every calibrated one."""
    quality: float = 99.0
    """Which calibrated rate to take: its agreement floor in percent."""
    frames: int = Field(default=24, ge=2)
    """Frames of each sequence."""
    noise: float = Field(default=1.5, ge=0)
    """Standard deviation of each frame's noise, of 255."""
    limit: int = Field(default=12, ge=1)
    """Most photographs to use."""
    as_json: bool = False
    """Print one JSON document."""


def run(options: Options) -> int:
    """Measure and print."""
    artifact = load_artifact(options.artifact)
    manifest = artifact.manifest
    if manifest.preprocess is None:
        raise UsageError(f"{options.artifact} takes no pictures")
    names = options.cuts or [cut.name for cut in manifest.cuts if cut.calibration]
    codecs, chain = Codecs(artifact), open_chain(artifact, RuntimeOptions())
    encoders = {}
    for name in names:
        position = manifest.position(name)
        encoders[name] = position, codecs.encoder(StepAnsCodec.name, position, options.quality)
    if not encoders:
        raise UsageError(
            f"nothing is calibrated; run: splitserve calibrate {options.artifact} --images DIR"
        )
    pictures = _pictures(options)
    meters = {(m.name, n): _Meter() for m in MOTIONS for n in names}
    jobs = [(motion, picture) for motion in MOTIONS for picture in pictures]
    console = Console(stderr=True)
    for motion, picture in track(jobs, "moving", console=console, transient=True):
        streams = {name: _Stream(position) for name, (position, _) in encoders.items()}
        for pixels in _frames(picture, manifest.preprocess, motion, options):
            tensors, last = model_input(pixels, manifest), 0
            for name, (position, codec) in encoders.items():
                tensors, last = chain.run(tensors, last, position), position
                plain = [tensors[spec.name] for spec in manifest.egress(position)]
                values = defend(manifest.defence(position), plain)
                if not isinstance(codec, StepAnsCodec):
                    raise TypeError(codec.name)
                meters[motion.name, name].add(*streams[name].send(codec, values))
    rows = [
        {"motion": motion, "cut": name} | meter.row() for (motion, name), meter in meters.items()
    ]
    _show(rows, len(pictures), options)
    return 0


class _Stream:
    """Both ends of one stream.

    Args:
        position: of its cut.
    """

    def __init__(self, position: int) -> None:
        self._position = position
        self._known: list[Symbols | None] = []
        self._references = References()

    def send(self, codec: StepAnsCodec, values: Sequence[Any]) -> tuple[int, int, bool]:
        """Code one frame both ways.

        Returns:
            Bytes of the request frame alone, bytes of the one after the known frame, and whether
            both decode to the same; the first frame has no known one and is the same both ways.
        """
        known = self._known or [None] * len(values)
        alone: list[bytes] = []
        after: list[bytes] = []
        is_same = True
        now: list[Symbols | None] = []
        for index, value in enumerate(values):
            if not codec.is_coded(index):
                stored = codec.encode(value, index)
                alone.append(stored)
                after.append(stored)
                now.append(None)
                continue
            symbols = codec.quantise(value, index)
            whole, short = codec.pack(symbols), codec.pack(symbols, known[index])
            shape, dtype = value.shape, str(value.dtype)
            wanted = codec.decode(memoryview(whole), shape, dtype, index)
            got = codec.decode(memoryview(short), shape, dtype, index, self._references)
            is_same = is_same and np.array_equal(wanted, got)
            alone.append(whole)
            after.append(short)
            now.append(symbols)
        self._known = now
        sizes = [frame_bytes(self._position, codec, values, sent) for sent in (alone, after)]
        return sizes[0], sizes[1], is_same


class _Meter:
    """Sums over the frames of one motion at one cut."""

    def __init__(self) -> None:
        self._seen: list[tuple[int, int, bool]] = []

    def add(self, alone: int, after: int, is_same: bool) -> None:
        self._seen.append((alone, after, is_same))

    def row(self) -> dict[str, Any]:
        """Figures of all frames, the first of each sequence included."""
        alone, after, same = (np.array(column) for column in zip(*self._seen, strict=True))
        return {
            "frames": len(alone),
            "bytes_alone": round(float(alone.mean()), 1),
            "bytes_after": round(float(after.mean()), 1),
            "saved_percent": round(100 * (1 - float(after.sum() / alone.sum())), 1),
            "never_larger": bool((after <= alone).all()),
            "same_values": bool(same.all()),
        }


def _pictures(options: Options) -> list[Path]:
    if options.images is None:
        return [sample_folder() / name for name in SAMPLES]
    return list_pictures(options.images)[: options.limit]


def _frames(
    path: Path, preprocess: Preprocess, motion: Motion, options: Options
) -> Iterator[Pixels]:
    """Yield the views of one sequence, panning along the middle of the picture."""
    generator = np.random.default_rng(0)
    boxes = []
    for index in range(options.frames):
        share = SHARE * motion.zoom**index
        away = motion.pan / REFERENCE_PIXELS * SHARE * (index - (options.frames - 1) / 2)
        boxes.append((share, away))
    for pixels in cut_views(path, boxes, preprocess):
        noisy = pixels + generator.normal(0, options.noise, pixels.shape)
        yield np.rint(noisy).clip(0, 255).astype(np.uint8)


def _show(rows: Sequence[dict[str, Any]], pictures: int, options: Options) -> None:
    if options.as_json:
        print_document({"photographs": pictures, "rows": rows})
        return
    table = Table(
        title="bytes a request frame, everything counted", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("motion", no_wrap=True)
    table.add_column("cut", no_wrap=True)
    for name in ("alone", "after the last", "saved"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["motion"],
            row["cut"],
            f"{row['bytes_alone']:,.0f}",
            f"{row['bytes_after']:,.0f}",
            f"{row['saved_percent']:.0f} %",
        )
    Console().print(table)
    worse = sum(not row["never_larger"] for row in rows)
    wrong = sum(not row["same_values"] for row in rows)
    Console(stderr=True).print(
        f"{pictures} photographs, {options.frames} frames each, the first of each coded alone and"
        f" counted; pixels are those of a view {REFERENCE_PIXELS} high; noise of"
        f" {options.noise:g}/255 on every frame.\n"
        f"rows with a frame larger than alone: {worse}; with other values than alone: {wrong}",
        markup=False,
        soft_wrap=True,
    )
