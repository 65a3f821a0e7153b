"""`splitserve bench gates`: the acceptance gates of the leakage audit, measured in one run."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from splitserve.bench.cifar import read_pictures
from splitserve.bench.gates import guarding, instruments, inversion, reporting
from splitserve.bench.gates.gate import Gate, as_table
from splitserve.bench.gates.network import TUNED, Bench, Pictures, prepare
from splitserve.errors import UsageError
from splitserve.output import print_document
from splitserve.settings import Names, Settings

EXIT_MISSED = 3
FILE = "gates.json"
MEASUREMENTS = {
    "instruments": (instruments.measure, "A1 to A3"),
    "data-free": (inversion.data_free, "D1 to D4, D6"),
    "chain": (inversion.chain, "D5"),
    "generality": (inversion.generality, "D7"),
    "optimisation": (inversion.optimisation, "B1, B2"),
    "auxiliary": (inversion.auxiliary, "C2"),
    "floor": (guarding.floor, "A4, F1, F2, F4"),
    "bits": (guarding.bits, "F2b"),
    "repetition": (guarding.repetition, "F3"),
    "report": (reporting.measure, "G1 to G6"),
}


class Options(Settings):
    """Measure the gates of docs/audit.md on the CIFAR-10 ResNet-20.

    Exit status 3 says that a gate was missed. The gates on the network of He, Zhang and Lee are
    those of `splitserve bench published`. Figures are kept, so that one measurement can be
    repeated alone.
    """

    model_config = SettingsConfigDict(
        cli_prog_name="splitserve bench gates", env_prefix="SPLITSERVE_BENCH_GATES_"
    )

    weights: CliPositionalArg[Path]
    """Weights of CIFAR-10 ResNet-20, safetensors."""
    test: Path
    """Archive of CIFAR-10 pictures to attack, .npz with images (n, 32, 32, 3) and labels."""
    train: Path
    """Archive of other ones, for an attacker with pictures of his own."""
    only: Names = Field(default=list(MEASUREMENTS))
    """Measurements, comma-separated; by default all."""
    pictures: int = Field(default=200, ge=20)
    """Attacked pictures."""
    seed: int = 0
    """Of everything drawn."""
    threads: int = Field(default=1, ge=1)
    """Threads of the attacks."""
    build: Path = Path("build")
    """Folder that keeps networks between runs; the result goes to gates.json there."""
    as_json: bool = False
    """Print one JSON document."""


def run(options: Options) -> int:
    """Measure and print."""
    unknown = [name for name in options.only if name not in MEASUREMENTS]
    if unknown:
        raise UsageError(f"--only: no {unknown[0]!r}; there are: {', '.join(MEASUREMENTS)}")
    torch.set_num_threads(options.threads)
    test = read_pictures(options.test)[0][: options.pictures + TUNED]
    train, labels = read_pictures(options.train)
    console, document = Console(stderr=True), _read(options)
    with console.status("exporting and cutting ResNet-20"):
        artifact = prepare(options.weights, options.build)
    bench = Bench(artifact, Pictures(test, train, labels.tolist()), options.build, options.seed)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        whole = progress.add_task("measurements", total=len(options.only))
        for name in options.only:
            measure, numbers = MEASUREMENTS[name]
            bar = progress.add_task(f"{name} ({numbers}), steps", total=None)
            found = measure(bench, partial(progress.advance, bar))
            document = _keep(options, name, found)
            progress.remove_task(bar)
            progress.advance(whole)
    if options.as_json:
        print_document(document)
    else:
        rows = document["gates"]
        met = sum(row["is_met"] for row in rows)
        Console().print(as_table(rows, f"{met} of {len(rows)} gates met"))
    return 0 if all(row["is_met"] for row in document["gates"]) else EXIT_MISSED


def _read(options: Options) -> dict[str, Any]:
    """What earlier runs with the same settings measured: the whole takes more than half an hour."""
    document: dict[str, Any] = {
        "seed": options.seed,
        "pictures": options.pictures,
        "threads": options.threads,
        "torch": torch.__version__,
        "gates": [],
    }
    path = options.build / FILE
    if not path.is_file():
        return document
    known: dict[str, Any] = json.loads(path.read_text())
    is_same = all(known.get(key) == value for key, value in document.items() if key != "gates")
    return known if is_same else document


def _keep(options: Options, name: str, gates: list[Gate]) -> dict[str, Any]:
    """Put a measurement's gates in the place of its earlier ones, and write the file."""
    document = _read(options)
    others = [row for row in document["gates"] if row["measurement"] != name]
    rows = [*others, *({"measurement": name, **gate.as_row()} for gate in gates)]
    document["gates"] = sorted(rows, key=lambda row: str(row["number"]))
    (options.build / FILE).write_text(json.dumps(document, indent=1) + "\n")
    return document
