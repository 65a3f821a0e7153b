"""Calibrate the cuts of an artifact and write it anew."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.progress import Progress

from splitserve.artifact import Artifact, Calibration, StoredFile, write_artifact
from splitserve.calibrate.agreement import Judge
from splitserve.calibrate.cut import CutCalibrator, Material
from splitserve.calibrate.inputs import Inputs, model_input
from splitserve.calibrate.motion import SHIFTS, moved_pictures
from splitserve.codec import write_tables
from splitserve.runtime import Chain, RuntimeOptions, open_chain
from splitserve.tensors import Array, Tensors

MEMORY_BYTES = 1 << 30  # features of one half of the inputs
PAIRS = 32


@dataclass(frozen=True, slots=True)
class Task:
    """What to calibrate.

    Args:
        positions: of the cuts.
        floors: agreement to keep, percent.
        judge: what agreeing means.
        seed: of the noise.
        threads: to compute with; 0 takes the cores there are.
    """

    positions: Sequence[int]
    floors: Sequence[float]
    judge: Judge
    seed: int = 0
    threads: int = 0


def calibrate_artifact(
    artifact: Artifact, inputs: Inputs, task: Task, target: Path, progress: Progress
) -> Artifact:
    """Find tables and rates for some cuts; the others keep theirs.

    Args:
        artifact: as it is.
        inputs: the first half fits, the other measures.
        task: which cuts, and how.
        target: folder to write, which may be the artifact's own.
        progress: shows one bar per cut.
    """
    manifest = artifact.manifest
    chain = open_chain(artifact, RuntimeOptions(threads=task.threads))
    answers = _Answers(artifact, chain, inputs)
    cuts, made = list(manifest.cuts), {}
    for position in task.positions:
        tables, calibration = _calibrate(answers, position, task, progress)
        made[calibration.tables.file] = tables
        cuts[position - 1] = cuts[position - 1].model_copy(update={"calibration": calibration})
    changed = manifest.model_copy(update={"cuts": tuple(cuts)})
    files = {
        stored.file: made.get(stored.file) or artifact.read_file(stored) for stored in changed.files
    }
    return write_artifact(target, changed, files)


def _calibrate(
    answers: "_Answers", position: int, task: Task, progress: Progress
) -> tuple[bytes, Calibration]:
    manifest = answers.artifact.manifest
    bar = progress.add_task(escape(manifest.positions[position]), total=None)
    material = answers.material(position, task.seed)
    calibrator = CutCalibrator(
        answers.chain, material, task.judge, task.seed, lambda: progress.advance(bar)
    )
    tables = calibrator.fit(
        channels_last=bool(manifest.preprocess and manifest.preprocess.layout == "NHWC")
    )
    rates = calibrator.rates(tables, task.floors)
    progress.update(bar, total=progress.tasks[bar].completed)
    content = write_tables(tables)
    stored = StoredFile(
        file=f"c{position}.npz", sha256=hashlib.sha256(content).hexdigest(), bytes=len(content)
    )
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
            fit=features[:count],
            fit_wanted=[self.wanted[index] for index in fit],
            held=features[count:],
            held_wanted=[self.wanted[index] for index in held],
            labels=[self.inputs.labels[index] for index in held] if self.inputs.labels else [],
            pairs=self._pairs(position, min(PAIRS, count), seed),
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
        return dict(self.chain.run(tensors, 0, position))
