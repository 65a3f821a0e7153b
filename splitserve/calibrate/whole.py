"""Calibrate the cuts of an artifact and write it anew."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.progress import Progress

from splitserve.agreement import Judge
from splitserve.artifact import (
    CALIBRATED_ON_MAX,
    Artifact,
    Calibration,
    Exit,
    Manifest,
    StoredFile,
    write_artifact,
)
from splitserve.calibrate.cut import CutCalibrator, Material, most_searches
from splitserve.calibrate.exits import ExitFitter, Origin
from splitserve.calibrate.inputs import Inputs, model_input
from splitserve.calibrate.motion import SHIFTS, moved_pictures
from splitserve.codec import write_tables
from splitserve.defence import defend
from splitserve.errors import UsageError
from splitserve.runtime import Chain, RuntimeOptions, open_chain
from splitserve.tensors import Array, Tensors

MEMORY_BYTES = 2 << 30
COPIES = 9  # of one half's features at the peak, measured: 7.1, and 1.3 with pairs for a quarter
PAIR_COPIES = 28  # of one frame's features for each pair, so that pairs stay within that
PAIRS, PAIRS_MIN = 32, 4
INPUTS_MIN = 10  # of each half, whatever they weigh


@dataclass(frozen=True, slots=True)
class Task:
    """What to calibrate.

    Args:
        positions: of the cuts.
        floors: agreement to keep, percent.
        judge: what agreeing means.
        seed: of the noise.
        threads: to compute with; 0 takes the cores there are.
        exits: positions of the cuts that get an exit, of a classifier only.
    """

    positions: Sequence[int]
    floors: Sequence[float]
    judge: Judge
    seed: int = 0
    threads: int = 0
    exits: Sequence[int] = ()


def calibrate_artifact(
    artifact: Artifact, inputs: Inputs, task: Task, target: Path, progress: Progress
) -> Artifact:
    """Find tables and rates for some cuts, and exits for some; the others keep theirs.

    Args:
        artifact: as it is.
        inputs: the first half fits, the other measures.
        task: which cuts, and how.
        target: folder to write, which may be the artifact's own.
        progress: shows one bar per cut.

    Raises:
        UsageError: more inputs than a manifest may name.
        CodecError: features that the codec cannot carry.
    """
    manifest = artifact.manifest
    named = _calibrated_on(manifest, inputs, task)
    chain = open_chain(artifact, RuntimeOptions(threads=task.threads))
    answers = _Answers(artifact, chain, inputs, task.seed)
    cuts, made = list(manifest.cuts), {}
    for position in task.positions:
        tables, calibration = _calibrate(answers, position, task, progress)
        made[calibration.tables.file] = tables
        cuts[position - 1] = cuts[position - 1].model_copy(update={"calibration": calibration})
    for position, (graph, facts) in _fit_exits(answers, task, progress).items():
        made[facts.graph.file] = graph
        cuts[position - 1] = cuts[position - 1].model_copy(update={"exit": facts})
    changed = manifest.model_copy(update={"cuts": tuple(cuts), "calibrated_on": named})
    files = {
        stored.file: made.get(stored.file) or artifact.read_file(stored) for stored in changed.files
    }
    return write_artifact(target, changed, files)


def _calibrated_on(manifest: Manifest, inputs: Inputs, task: Task) -> tuple[str, ...]:
    """Names of these inputs, and of earlier ones while a cut keeps what was fitted to them."""
    kept = [
        cut
        for position, cut in enumerate(manifest.cuts, 1)
        if (cut.calibration and position not in task.positions)
        or (cut.exit and position not in task.exits)
    ]
    named = sorted({*inputs.names, *(manifest.calibrated_on if kept else ())})
    if len(named) > CALIBRATED_ON_MAX:
        raise UsageError(
            f"{len(named)} calibration inputs, where an artifact may name {CALIBRATED_ON_MAX}:"
            " calibrate all cuts at once, with fewer"
        )
    return tuple(named)


def _calibrate(
    answers: "_Answers", position: int, task: Task, progress: Progress
) -> tuple[bytes, Calibration]:
    manifest = answers.artifact.manifest
    bar = progress.add_task(escape(manifest.positions[position]), total=None)
    material = answers.material(position, task.seed)
    calibrator = CutCalibrator(
        answers.chain, material, task.judge, task.seed, lambda runs: progress.advance(bar, runs)
    )
    most = most_searches(len(task.floors)) * len(material.held)
    tables = calibrator.fit(
        bool(manifest.preprocess and manifest.preprocess.layout == "NHWC"),
        lambda runs: progress.update(bar, total=runs + most),
    )
    rates = calibrator.rates(tables, task.floors)
    done = progress.tasks[bar].completed
    progress.update(bar, total=done, completed=done)
    content = write_tables(tables)
    sha256 = hashlib.sha256(content).hexdigest()
    # The name tells the content, so that new tables leave those of the manifest in force alone.
    name = f"c{position}-{sha256[:8]}.npz"
    stored = StoredFile(file=name, sha256=sha256, bytes=len(content))
    return content, Calibration(
        tables=stored,
        rates=rates,
        fitted_on=len(material.fit_wanted),
        measured_on=len(material.held),
        inputs_sha256=answers.inputs.sha256,
        seed=task.seed,
        agreement_is=task.judge.kind,
        tolerance=task.judge.tolerance if task.judge.kind == "error" else None,
    )


def _fit_exits(
    answers: "_Answers", task: Task, progress: Progress
) -> dict[int, tuple[bytes, Exit]]:
    """Fit the exits of all cuts in one pass over the inputs; only pooled features are kept."""
    manifest = answers.artifact.manifest
    if not task.exits:
        return {}
    is_last = bool(manifest.preprocess and manifest.preprocess.layout == "NHWC")
    fitters = {
        position: ExitFitter(position, manifest.egress(position), channels_last=is_last)
        for position in sorted(task.exits)
    }
    bar = progress.add_task("exits", total=len(answers.inputs))
    for index in range(len(answers.inputs)):
        tensors, reached = answers.tensors(index), 0
        for position, fitter in fitters.items():
            tensors = answers.chain.run(tensors, reached, position)
            reached = position
            fitter.see(tensors)
        answers.keep(index, answers.chain.run(tensors, reached, len(answers.chain)))
        progress.advance(bar)
    wanted = [answers.wanted(index) for index in range(len(answers.inputs))]
    output, origin = manifest.outputs[0].name, Origin(answers.inputs.sha256, task.seed)
    return {position: fitter.fit(wanted, output, origin) for position, fitter in fitters.items()}


class _Answers:
    """Inputs with what the unsplit model answers."""

    def __init__(self, artifact: Artifact, chain: Chain, inputs: Inputs, seed: int) -> None:
        self.artifact, self.chain, self.inputs = artifact, chain, inputs
        self._noise = np.random.default_rng(seed)
        self._wanted: dict[int, Tensors] = {}

    def wanted(self, index: int) -> Tensors:
        """Answer of the unsplit model, computed once."""
        if index not in self._wanted:
            self._wanted[index] = dict(self.chain.run(self.tensors(index), 0, len(self.chain)))
        return self._wanted[index]

    def keep(self, index: int, outputs: Tensors) -> None:
        """Note an answer of the unsplit model that was computed elsewhere."""
        self._wanted.setdefault(index, dict(outputs))

    def tensors(self, index: int) -> Tensors:
        if self.inputs.pixels:
            return model_input(self.inputs.pixels[index], self.artifact.manifest)
        return self.inputs.tensors[index]

    def material(self, position: int, seed: int) -> Material:
        """Gather what is known at one cut, as much as fits into memory."""
        egress = self.artifact.manifest.egress(position)
        half = len(self.inputs) // 2
        size = _bytes(self._features(self.tensors(0), position))
        per_input = COPIES * size + 2 * _bytes(self.wanted(0))
        count = min(half, max(INPUTS_MIN, MEMORY_BYTES // per_input))
        most_pairs = MEMORY_BYTES // (PAIR_COPIES * size)
        pairs = min(PAIRS, count, max(PAIRS_MIN, most_pairs))
        fit, held = range(count), range(half, half + count)
        features = [self._features(self.tensors(index), position) for index in (*fit, *held)]
        return Material(
            position=position,
            egress=egress,
            fit=features[:count],
            fit_wanted=[self.wanted(index) for index in fit],
            held=features[count:],
            held_wanted=[self.wanted(index) for index in held],
            labels=[self.inputs.labels[index] for index in held] if self.inputs.labels else [],
            pairs=self._pairs(position, pairs, seed),
        )

    def _pairs(self, position: int, count: int, seed: int) -> list[list[dict[str, Array]]]:
        if not self.inputs.pixels:
            return []
        generator = np.random.default_rng(seed)
        manifest = self.artifact.manifest
        frames: list[list[dict[str, Array]]] = [[] for _ in range(1 + len(SHIFTS))]
        for pixels in self.inputs.pixels[:count]:
            views = [pixels, *moved_pictures(pixels, generator)]
            for level, view in enumerate(views):
                frames[level].append(self._features(model_input(view, manifest), position))
        return frames

    def _features(self, tensors: Tensors, position: int) -> dict[str, Array]:
        """What the codec meets at a cut: the features behind the cut's defence."""
        manifest = self.artifact.manifest
        seen = dict(self.chain.run(tensors, 0, position))
        names = [spec.name for spec in manifest.egress(position)]
        guarded = defend(manifest.defence(position), [seen[name] for name in names], self._noise)
        return {**seen, **dict(zip(names, guarded, strict=True))}


def _bytes(tensors: Tensors) -> int:
    return sum(value.nbytes for value in tensors.values())
