"""`splitserve calibrate`: find the codec's tables and rates for every cut of an artifact."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BeforeValidator, Field
from pydantic_settings import CliPositionalArg, NoDecode, SettingsConfigDict
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from splitserve.artifact import (
    Artifact,
    Calibration,
    Cut,
    Estimate,
    StoredFile,
    load_artifact,
    write_artifact,
)
from splitserve.calibrate.agreement import Judge, make_judge
from splitserve.calibrate.cut import CutCalibrator, Material
from splitserve.calibrate.inputs import Inputs, model_input, read_inputs
from splitserve.calibrate.motion import SHIFTS, moved_pictures
from splitserve.codec import write_tables
from splitserve.errors import UsageError
from splitserve.output import print_document
from splitserve.runtime import Chain, RuntimeOptions, open_chain
from splitserve.settings import Names, Settings, split_commas
from splitserve.tensors import Array, Tensors

MEMORY_BYTES = 1 << 30  # features of one half of the inputs
PAIRS = 32

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
    judge = make_judge(manifest.outputs, kind, options.tolerance)
    console = Console(stderr=True)
    with console.status("reading the inputs"):
        inputs = read_inputs(options.images, manifest, options.limit, options.seed)
        chain = open_chain(artifact, RuntimeOptions(threads=options.threads))
        answers = _Answers(artifact, chain, inputs)
    cuts, files = list(manifest.cuts), {}
    with _progress(console) as progress:
        for position in positions:
            calibrated = _calibrate(answers, position, judge, options, progress)
            cuts[position - 1], content = calibrated
            files[_tables(cuts[position - 1]).file] = content
    changed = manifest.model_copy(update={"cuts": tuple(cuts)})
    files |= {stored.file: artifact.read_file(stored) for stored in manifest.files} | files
    kept = {stored.file: files[stored.file] for stored in changed.files}
    written = write_artifact(options.output or options.artifact, changed, kept)
    _report(written, positions, options)
    return 0


class _Answers:
    """Inputs with what the unsplit model answers."""

    def __init__(self, artifact: Artifact, chain: Chain, inputs: Inputs) -> None:
        self.artifact, self.chain, self.inputs = artifact, chain, inputs
        self.wanted = [
            dict(chain.run(self.tensors(index), 0, len(chain))) for index in range(len(inputs))
        ]

    def tensors(self, index: int) -> Tensors:
        if self.inputs.pixels:
            return model_input(self.inputs.pixels[index], self.artifact.manifest)
        return self.inputs.tensors[index]

    def material(self, position: int, seed: int) -> Material:
        """Gather what is known at one cut, as much as fits into memory."""
        egress = self.artifact.manifest.egress(position)
        half = len(self.inputs) // 2
        size = sum(spec.raw_bytes() for spec in egress)
        count = min(half, max(10, MEMORY_BYTES // size))
        fit, held = range(count), range(half, half + count)
        features = [self._features(self.tensors(index), position) for index in (*fit, *held)]
        return Material(
            position=position,
            egress=egress,
            fit=_stack(features[:count]),
            fit_wanted=[self.wanted[index] for index in fit],
            held=features[count:],
            held_wanted=[self.wanted[index] for index in held],
            labels=[self.inputs.labels[index] for index in held] if self.inputs.labels else [],
            pairs=self._pairs(position, min(PAIRS, count), seed),
        )

    def _pairs(self, position: int, count: int, seed: int) -> list[dict[str, Array]]:
        if not self.inputs.pixels:
            return []
        generator = np.random.default_rng(seed)
        manifest = self.artifact.manifest
        frames: list[list[dict[str, Array]]] = [[] for _ in range(1 + len(SHIFTS))]
        for pixels in self.inputs.pixels[:count]:
            views = [pixels, *moved_pictures(pixels, generator)]
            for level, view in enumerate(views):
                frames[level].append(self._features(model_input(view, manifest), position))
        return [_stack(level) for level in frames]

    def _features(self, tensors: Tensors, position: int) -> dict[str, Array]:
        return dict(self.chain.run(tensors, 0, position))


def _stack(features: Sequence[Tensors]) -> dict[str, Array]:
    return {name: np.concatenate([each[name] for each in features]) for name in features[0]}


def _calibrate(
    answers: _Answers, position: int, judge: Judge, options: Options, progress: Progress
) -> tuple[Cut, bytes]:
    cut = answers.artifact.manifest.cuts[position - 1]
    task = progress.add_task(escape(cut.name), total=None)
    material = answers.material(position, options.seed)
    calibrator = CutCalibrator(
        answers.chain, material, judge, options.seed, lambda: progress.advance(task)
    )
    preprocess = answers.artifact.manifest.preprocess
    tables = calibrator.fit(bool(preprocess and preprocess.layout == "NHWC"))
    rates = calibrator.rates(tables, options.floors)
    progress.update(task, total=progress.tasks[task].completed)
    content = write_tables(tables)
    calibration = Calibration(
        tables=StoredFile(
            file=f"c{position}.npz",
            sha256=hashlib.sha256(content).hexdigest(),
            bytes=len(content),
        ),
        rates=rates,
        fitted_on=len(material.fit_wanted),
        measured_on=len(material.held),
        inputs_sha256=answers.inputs.sha256,
        seed=options.seed,
        agreement_is=judge.kind,
        tolerance=judge.tolerance if judge.kind == "error" else None,
    )
    return cut.model_copy(update={"calibration": calibration}), content


def _tables(cut: Cut) -> StoredFile:
    if cut.calibration is None:
        raise UsageError(f"{cut.name} is not calibrated")
    return cut.calibration.tables


def _progress(console: Console) -> Progress:
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
    table = Table(title=f"{escape(artifact.manifest.model.name)}: step-ans")
    table.add_column("cut", overflow="fold")
    for name in ("floor", "agreement", "bytes mean", "p95", "accuracy (unsplit)"):
        table.add_column(name, justify="right", no_wrap=True)
    for cut in cuts:
        for rate in cut.calibration.rates if cut.calibration else ():
            accuracy = (
                f"{rate.accuracy.value:.1f} % ({rate.accuracy_unsplit.value:.1f})"
                if rate.accuracy and rate.accuracy_unsplit
                else ""
            )
            table.add_row(
                escape(cut.name),
                f"{rate.floor:g} %",
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
    return f"{estimate.value:.1f} % ({estimate.low:.1f}-{estimate.high:.1f})"
