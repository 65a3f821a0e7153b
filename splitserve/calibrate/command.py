"""`splitserve calibrate`: find the codec's tables and rates for every cut of an artifact."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import CliPositionalArg, NoDecode, SettingsConfigDict
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from splitserve.artifact import Artifact, Estimate, load_artifact
from splitserve.calibrate.agreement import make_judge
from splitserve.calibrate.inputs import read_inputs
from splitserve.calibrate.whole import Task, calibrate_artifact
from splitserve.errors import UsageError
from splitserve.output import print_document
from splitserve.settings import Names, Settings, split_commas

Percent = Annotated[float, Field(gt=0, le=100)]
Percents = Annotated[list[Percent], NoDecode, BeforeValidator(split_commas)]


class Options(Settings):
    """Fit the step-ans codec to every cut of an artifact, without labels, and measure its rates.

    Half of the inputs fit the tables, the other half measures: for each agreement floor the
    coarsest step that keeps it is found by bisection, and its bytes are recorded. Where the folder
    holds labels.csv (file, label), accuracy is measured too. The artifact's id changes, so both
    sides need the new one.
    """

    model_config = SettingsConfigDict(
        cli_prog_name="splitserve calibrate",
        env_prefix="SPLITSERVE_CALIBRATE_",
        cli_shortcuts={"as-json": "json", "output": "o"},
    )

    artifact: CliPositionalArg[Path]
    """Artifact folder."""
    images: Path
    """Folder of pictures; .npz files with the model's inputs where it takes no pictures."""
    output: Path | None = None
    """Folder to write; by default the artifact itself."""
    cuts: Names = Field(default_factory=list)
    """Cuts to calibrate, comma-separated; by default all."""
    floors: Percents = Field(default=[99.5, 99, 98, 95], min_length=1)
    """Agreement with the unsplit model to keep, percent, comma-separated."""
    limit: int = Field(default=500, ge=20)
    """Most inputs to use."""
    agreement: Literal["auto", "argmax", "error"] = "auto"
    """What agreeing means: the same best class, or outputs within the tolerance."""
    tolerance: float = Field(default=0.05, gt=0)
    """Root mean square error over root mean square of the outputs that still agrees."""
    seed: int = 0
    """Of the drawing and of the noise."""
    threads: int = Field(default=0, ge=0)
    """Threads to compute with; 0 takes the cores there are."""
    as_json: bool = False
    """Print one JSON document."""


def run(options: Options) -> int:
    """Calibrate, write and report."""
    artifact = load_artifact(options.artifact)
    manifest = artifact.manifest
    positions = [manifest.position(name) for name in options.cuts or manifest.positions[1:-1]]
    if not positions or not all(1 <= position <= len(manifest.cuts) for position in positions):
        raise UsageError(
            f"nothing to calibrate: {options.artifact} has the cuts"
            f" {', '.join(manifest.positions[1:-1]) or '(none)'}"
        )
    kind = None if options.agreement == "auto" else options.agreement
    task = Task(
        positions=positions,
        floors=options.floors,
        judge=make_judge(manifest.outputs, kind, options.tolerance),
        seed=options.seed,
        threads=options.threads,
    )
    console = Console(stderr=True)
    with console.status("reading the inputs"):
        inputs = read_inputs(options.images, manifest, options.limit, options.seed)
    with show_progress(console) as progress:
        target = options.output or options.artifact
        written = calibrate_artifact(artifact, inputs, task, target, progress)
    _report(written, positions, options)
    return 0


def show_progress(console: Console) -> Progress:
    """Bars for `calibrate_artifact`, gone when it is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


def _report(artifact: Artifact, positions: Sequence[int], options: Options) -> None:
    cuts = [artifact.manifest.cuts[position - 1] for position in positions]
    if options.as_json:
        print_document(
            {
                "artifact": str(artifact.root),
                "id": artifact.id.hex(),
                "cuts": [
                    {"name": cut.name, "calibration": cut.calibration.model_dump()}
                    for cut in cuts
                    if cut.calibration
                ],
            }
        )
        return
    table = Table(title=f"{escape(artifact.manifest.model.name)}: step-ans", box=SIMPLE_HEAD)
    table.add_column("cut", overflow="fold", min_width=8)
    for name in ("floor", "agreement (95 %)", "bytes", "p95", "top-1 (unsplit)"):
        table.add_column(name, justify="right", no_wrap=True)
    for cut in cuts:
        table.add_section()
        for index, rate in enumerate(cut.calibration.rates if cut.calibration else ()):
            accuracy = (
                f"{rate.accuracy.value:.1f} ({rate.accuracy_unsplit.value:.1f})"
                if rate.accuracy and rate.accuracy_unsplit
                else ""
            )
            table.add_row(
                "" if index else escape(cut.name),
                f"{rate.floor:g}",
                interval(rate.agreement),
                f"{rate.bytes_mean:,.0f}",
                f"{rate.bytes_p95:,.0f}",
                accuracy,
            )
    Console().print(table)
    Console(stderr=True).print(
        f"{artifact.root}: id {artifact.id.hex()}\n"
        "bytes: one request frame, everything counted; agreement: 95 % interval, on inputs that"
        " the tables were not fitted to",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def interval(estimate: Estimate) -> str:
    """Show a share with its interval."""
    return f"{estimate.value:.1f} ({estimate.low:.1f}-{estimate.high:.1f})"
