"""`splitserve bench coders`: what else could code the same integers, and how fast the codec is."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from splitserve.artifact import load_artifact
from splitserve.bench.rivals import Coder, Rivals
from splitserve.bench.speed import time_codecs, time_figures
from splitserve.calibrate import model_input, read_inputs
from splitserve.codec import Codecs, StepAnsCodec, read_tables, use_one_thread
from splitserve.codec.rans import Ints
from splitserve.errors import UsageError
from splitserve.output import print_document
from splitserve.runtime import RuntimeOptions, open_chain
from splitserve.settings import Settings

SHAPES = ((1, 80, 14, 14), (1, 64, 56, 56))


class Options(Settings):
    """Code the integers of one cut with other coders, and time whole codecs on one core.

    The first half of the pictures trains what needs training (dictionaries, contexts), the other
    half is measured.
    """

    model_config = SettingsConfigDict(
        cli_prog_name="splitserve bench coders", env_prefix="SPLITSERVE_BENCH_CODERS_"
    )

    artifact: CliPositionalArg[Path]
    """Calibrated artifact folder."""
    images: Path
    """Folder of pictures."""
    cut: str = "block5"
    """Where to take the features."""
    quality: float = 99.0
    """Which calibrated rate to take: its agreement floor in percent."""
    limit: int = Field(default=200, ge=20)
    """Most pictures to use."""
    rounds: int = Field(default=200, ge=5)
    """Timed rounds of every codec; the slow Python loops take part in every twentieth."""
    as_json: bool = False
    """Print one JSON document."""


def run(options: Options) -> int:
    """Measure and print both tables."""
    console = Console(stderr=True)
    use_one_thread()
    rows = _compare(options, console)
    speed = [row for shape in SHAPES for row in time_codecs(shape, options.rounds, console)]
    if options.as_json:
        print_document({"cut": options.cut, "coders": rows, "speed": speed})
    else:
        _show(f"integers of {options.cut}, bytes a picture", rows)
        _show("whole codecs through the Python API, one core", speed)
    return 0


def _compare(options: Options, console: Console) -> list[dict[str, Any]]:
    artifact = load_artifact(options.artifact)
    manifest = artifact.manifest
    position = manifest.position(options.cut)
    codec = Codecs(artifact).encoder(StepAnsCodec.name, position, options.quality)
    content, egress = artifact.read_tables(position), manifest.egress(position)
    tables = read_tables(content, egress)[0] if content and len(egress) == 1 else None
    if tables is None or not isinstance(codec, StepAnsCodec):
        raise UsageError(f"{options.cut} is not a calibrated cut of one tensor")
    inputs = read_inputs(options.images, manifest, options.limit, seed=1)
    chain = open_chain(artifact, RuntimeOptions(threads=1))
    integers = []
    for pixels in track(inputs.pixels, "features", console=console, transient=True):
        features = chain.run(model_input(pixels, manifest), 0, position)[egress[0].name]
        integers.append(codec.quantise(features).values)
    half = len(integers) // 2
    coders = Rivals(integers[:half], tables, codec.parameter).all()
    for values in track(integers[half:], "coding", console=console, transient=True):
        for coder in coders:
            _measure(coder, values)
    return [
        {"coder": coder.name, "bytes_mean": round(float(np.mean(coder.sizes)), 1)}
        | (time_figures(coder.encode_s, coder.decode_s) if coder.encode else {})
        for coder in coders
    ]


def _measure(coder: Coder, values: Ints) -> None:
    if coder.encode is None or coder.decode is None:
        coder.sizes.append(coder.size(values))
        return
    started = time.perf_counter()
    coded = coder.encode(values)
    encoded = time.perf_counter()
    coder.decode(coded)
    coder.decode_s.append(time.perf_counter() - encoded)
    coder.encode_s.append(encoded - started)
    coder.sizes.append(coder.size(coded))


def _show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    has_elements = "elements" in rows[0]
    numbers = ["elements"] if has_elements else []
    for name in (*numbers, "bytes", "enc ms", "p95", "dec ms", "p95"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        elements = [f"{row['elements']:,}"] if has_elements else []
        times = [
            f"{row[key]:.2f}" if key in row else ""
            for key in ("encode_ms_median", "encode_ms_p95", "decode_ms_median", "decode_ms_p95")
        ]
        table.add_row(row["coder"], *elements, f"{row['bytes_mean']:,.0f}", *times)
    Console().print(table)
