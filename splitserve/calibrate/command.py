"""`splitserve calibrate`: find the codec's tables and rates for every cut of an artifact."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import CliPositionalArg, NoDecode, SettingsConfigDict
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from splitserve.agreement import Judge, make_judge
from splitserve.artifact import (
    CALIBRATED_ON_MAX,
    Artifact,
    Cut,
    Estimate,
    Manifest,
    Withdrawn,
    load_artifact,
)
from splitserve.calibrate.exits import require_classifier
from splitserve.calibrate.inputs import INPUTS_MIN, read_inputs
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
    sides need the new one. Exit status 3 means that a floor could not be kept.
    """

    model_config = SettingsConfigDict(
        cli_prog_name="splitserve calibrate",
        env_prefix="SPLITSERVE_CALIBRATE_",
        cli_shortcuts={"as-json": "json", "output": "o"},
    )

    artifact: CliPositionalArg[Path]
    """Artifact folder."""
    images: Path
    """Folder of pictures; .npz files with the model's inputs, batch 1, where it takes no
    pictures."""
    output: Path | None = None
    """Folder to write; by default the artifact itself."""
    cuts: Names = Field(default=[])
    """Cuts to calibrate, comma-separated; by default all."""
    exits: Names = Field(default=[])
    """Cuts that get an exit, comma-separated: a small classifier that may answer easy inputs on
    the device. Needs a classifier; 1,000 inputs and more (--limit) are well spent here."""
    exits_only: bool = False
    """Fit the exits alone; the codecs stay as they are."""
    floors: Percents = Field(default=[99.5, 99, 98, 95], min_length=1)
    """Agreement with the unsplit model to keep, percent, comma-separated."""
    limit: int = Field(default=500, ge=INPUTS_MIN, le=CALIBRATED_ON_MAX)
    """Most inputs to use."""
    agreement: Literal["auto", "argmax", "error"] = "auto"
    """What agreeing means: the same best class, or outputs within the tolerance; auto takes one row
    of several numbers for class scores."""
    tolerance: float = Field(default=0.05, gt=0)
    """For `error` only: root mean square error over root mean square of the outputs that agrees."""
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
    task = _make_task(options, manifest)
    console = Console(stderr=True)
    with console.status("reading the inputs"):
        inputs = read_inputs(options.images, manifest, options.limit, options.seed)
    _say(console, describe_judge(task.judge, manifest))
    for warning in warn_of_few(options.floors, len(inputs)) if task.positions else []:
        _say(console, warning, style="yellow")
    with show_progress(console) as progress:
        target = options.output or options.artifact
        written = calibrate_artifact(artifact, inputs, task, target, progress)
    cuts = [written.manifest.cuts[position - 1] for position in task.positions]
    _report(written, cuts, task, options)
    for line in warn_of_memory(cuts, len(inputs)):
        _say(console, line, style="yellow")
    dropped = name_dropped(cuts, options.floors)
    for line in dropped:
        _say(console, line, style="red")
    return 3 if dropped else 0


def _make_task(options: Options, manifest: Manifest) -> Task:
    """Say what is to be done.

    Raises:
        UsageError: no such cut, nothing to do, or exits for a model that is no classifier.
    """
    if options.exits_only and not options.exits:
        raise UsageError("--exits-only needs the cuts: add --exits CUT")
    open_cuts = [cut.name for cut in manifest.cuts if not isinstance(cut.defence, Withdrawn)]
    wanted = [] if options.exits_only else options.cuts or open_cuts
    positions, exits = (
        [manifest.position(name) for name in dict.fromkeys(names)]
        for names in (wanted, options.exits)
    )
    all_cuts = [*positions, *exits]
    if not all_cuts or not all(1 <= position <= len(manifest.cuts) for position in all_cuts):
        raise UsageError(
            f"nothing to calibrate: {options.artifact} has the cuts"
            f" {', '.join(manifest.positions[1:-1]) or '(none)'}"
        )
    kind = None if options.agreement == "auto" else options.agreement
    judge = make_judge(manifest.outputs, kind, options.tolerance)
    if exits:
        require_classifier(manifest, judge)
    return Task(
        positions=positions,
        floors=options.floors,
        judge=judge,
        seed=options.seed,
        threads=options.threads,
        exits=exits,
    )


def describe_judge(judge: Judge, manifest: Manifest) -> str:
    """Say what agreeing means."""
    if judge.kind == "argmax":
        output = manifest.outputs[0]
        return f"agreement: the same best class of {output.name} ({output.sizes} scores)"
    names = ", ".join(judge.outputs)
    return f"agreement: {names} within a relative error of {judge.tolerance:g}"


def warn_of_few(floors: Sequence[float], inputs: int) -> list[str]:
    """Name the floors that so many inputs cannot tell from keeping every answer."""
    lines = []
    for floor in sorted(set(floors), reverse=True):
        needed = math.ceil(round(100 / (100 - floor), 6)) if floor < 100 else 0
        if inputs // 2 < needed:
            lines.append(
                f"floor {floor:g}: {inputs // 2} inputs measure it, so not one answer may differ;"
                f" to tell it from 100 give at least {2 * needed} inputs (--images, --limit)"
            )
    return lines


def warn_of_memory(cuts: Sequence[Cut], inputs: int) -> list[str]:
    """Name the cuts whose features were too large to use every input."""
    return [
        f"{cut.name}: its features are large, so {cut.calibration.fitted_on} inputs were fitted to"
        f" and {cut.calibration.measured_on} measured, of {inputs}"
        for cut in cuts
        if cut.calibration and cut.calibration.measured_on < inputs // 2
    ]


def name_dropped(cuts: Sequence[Cut], floors: Sequence[float]) -> list[str]:
    """Name the floors that no step kept."""
    lines = []
    for cut in cuts:
        kept = {rate.floor for rate in cut.calibration.rates} if cut.calibration else set()
        missed = sorted(set(floors) - kept, reverse=True)
        if missed:
            lines.append(
                f"{cut.name}: even the finest step misses the floors"
                f" {', '.join(f'{floor:g}' for floor in missed)}"
            )
    return lines


def _say(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def show_progress(console: Console) -> Progress:
    """Bars for `calibrate_artifact`, gone when it is done."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
        TextColumn("left:"), TimeRemainingColumn(),
    )  # fmt: skip
    return Progress(*columns, console=console, transient=True)


def _report(artifact: Artifact, cuts: Sequence[Cut], task: Task, options: Options) -> None:
    exits = [artifact.manifest.cuts[position - 1] for position in task.exits]
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
                "exits": [
                    {"name": cut.name, "exit": cut.exit.model_dump()} for cut in exits if cut.exit
                ],
            }
        )
        return
    if cuts:
        _show_rates(artifact, cuts)
    if exits:
        Console().print(_exit_table(exits))
        _say(
            Console(stderr=True),
            "uploads: share of these inputs whose confidence is under `from`; agreement with the"
            " whole model, every input judged by an exit that was fitted to others",
        )
    _say(Console(stderr=True), f"{artifact.root}: id {artifact.id.hex()}")


def _exit_table(cuts: Sequence[Cut]) -> Table:
    table = Table(title="exits", box=SIMPLE_HEAD)
    table.add_column("cut", overflow="fold", min_width=8)
    for name in ("uploads %", "from", "early agree (95 %)", "all agree (95 %)"):
        table.add_column(name, justify="right", no_wrap=True)
    for cut in cuts:
        table.add_section()
        for index, rate in enumerate(cut.exit.rates if cut.exit else ()):
            name = "" if index else escape(cut.name)
            shares = interval(rate.early), interval(rate.answers)
            table.add_row(name, f"{rate.upload:g}", f"{rate.threshold:.4f}", *shares)
    return table


def _show_rates(artifact: Artifact, cuts: Sequence[Cut]) -> None:
    table = Table(title=f"{escape(artifact.manifest.model.name)}: step-ans", box=SIMPLE_HEAD)
    table.add_column("cut", overflow="fold", min_width=8)
    for name in ("floor", "agreement (95 %)", "bytes", "p95", "top-1 (unsplit)"):
        table.add_column(name, justify="right", no_wrap=True)
    for cut in cuts:
        table.add_section()
        if cut.calibration and not cut.calibration.rates:
            table.add_row(escape(cut.name), "none kept")
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
    _say(
        Console(stderr=True),
        "bytes: one request frame, everything counted; agreement: 95 % interval, on inputs that"
        " the tables were not fitted to",
    )


def interval(estimate: Estimate) -> str:
    """Show a share with its interval."""
    return f"{estimate.value:.1f} ({estimate.low:.1f}-{estimate.high:.1f})"
