"""A whole profile: load, survey, time, fill in what was not measured."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from splitserve.agreement import estimate, judge_of
from splitserve.artifact import OUTPUT, Artifact, Manifest
from splitserve.profile.carrier import Carrier, list_carriers
from splitserve.profile.document import Candidate, Pictures, Place, Prediction, Profile, Timing
from splitserve.profile.inputs import Inputs
from splitserve.profile.machine import (
    describe_machine,
    resident_bytes,
    tool_versions,
    usable_cores,
)
from splitserve.profile.measure import Rounds, Tick, summarise, survey
from splitserve.profile.predict import leave_one_out, predict_heads, predict_tails
from splitserve.profile.stages import Stages, Watch
from splitserve.runtime import RuntimeOptions, open_chain
from splitserve.tensors import Tensors

Predict = Callable[[Sequence[float], Sequence[float | None]], list[float]]
FIELDS = ("median_s", "p90_s", "native_median_s", "native_p90_s")


@dataclass(frozen=True, slots=True)
class Task:
    """What to measure.

    Args:
        positions: cuts whose heads and tails are timed.
        jpeg_qualities: candidates at the input.
        webp_qualities: likewise.
        rounds: that count.
        warm_up: rounds before them.
        slowdown: stretch the time of everything computed.
        idle_s: pause before what a request begins with, on either side.
        threads: of the runtime; 0 takes the cores there are.
        seed: of noise and order.
    """

    positions: Sequence[int]
    jpeg_qualities: Sequence[int]
    webp_qualities: Sequence[int]
    rounds: int
    warm_up: int
    slowdown: float
    idle_s: float
    threads: int
    seed: int


def profile_artifact(artifact: Artifact, inputs: Inputs, task: Task, tick: Tick) -> Profile:
    """Measure an artifact on this machine.

    Args:
        artifact: the folder.
        inputs: to feed it with.
        task: what to measure.
        tick: called after each input of the survey and after each round.

    Raises:
        IntegrityError: a file differs from its hash.
        RuntimeFailureError: ONNX Runtime refuses or fails.
    """
    manifest = artifact.manifest
    reply_bytes, resident = _run_once(artifact, inputs, task)
    fused = range(1, len(manifest.cuts) + 1)
    chain = open_chain(artifact, RuntimeOptions(threads=task.threads), fused=fused)
    stages = Stages(artifact, chain)
    carriers = list_carriers(artifact, task.jpeg_qualities, task.webp_qualities)
    judge = judge_of(manifest) if inputs.kind == "files" else None
    survey(stages, manifest, inputs, carriers, judge, tick)
    carriers = [carrier for carrier in carriers if carrier.problem is None]
    measured = {0, *task.positions, stages.end}
    rounds = Rounds(stages, manifest, inputs, carriers, sorted(measured))
    rounds.run(task.warm_up, Watch(task.slowdown, task.idle_s), tick)
    watch = Watch(task.slowdown, task.idle_s)
    rounds.run(task.rounds, watch, tick)
    places, prediction = _places(manifest, rounds, measured)
    return Profile(
        artifact_id=artifact.id.hex(),
        model=manifest.model.name,
        machine=describe_machine(),
        threads=task.threads or usable_cores(),
        providers=chain.providers,
        tools=tool_versions(),
        slowdown=task.slowdown,
        slowdown_measured=watch.total.wall_s / max(watch.total.native_s, 1e-12),
        rounds=task.rounds,
        idle_s=task.idle_s,
        seed=task.seed,
        pictures=Pictures(kind=inputs.kind, count=len(inputs), sha256=inputs.sha256),
        picture=rounds.timing("picture"),
        normalise=rounds.timing("normalise"),
        places=places,
        candidates=_candidates(manifest, rounds, carriers, places),
        prediction=prediction,
        reply_bytes=reply_bytes,
        resident_bytes=resident,
    )


def _run_once(artifact: Artifact, inputs: Inputs, task: Task) -> tuple[int, int | None]:
    """Bytes of a reply, and memory of this process with the shared segments, all run once."""
    chain = open_chain(artifact, RuntimeOptions(threads=task.threads))
    blank: Tensors = {
        spec.name: np.zeros(spec.concrete(), spec.dtype) for spec in artifact.manifest.inputs
    }
    stages = Stages(artifact, chain)
    features = stages.walk(inputs.tensors[0] if inputs.tensors else blank)
    return stages.reply_bytes(features[-1]), resident_bytes()


def _places(
    manifest: Manifest, rounds: Rounds, measured: set[int]
) -> tuple[tuple[Place, ...], Prediction | None]:
    """Every position, with predicted times where none were measured."""
    names = manifest.positions
    shares = [0.0, *(cut.macs_share for cut in manifest.cuts), 1.0]
    every = range(len(names))
    heads = [rounds.timing("head", p) if p in measured else None for p in every]
    tails = [rounds.timing("tail", p) if p in measured else None for p in every]
    prediction = leave_one_out(
        shares,
        [timing.median_s if timing else None for timing in heads],
        [timing.median_s if timing else None for timing in tails],
    )
    all_heads, all_tails = fill(shares, heads, predict_heads), fill(shares, tails, predict_tails)
    places = [
        Place(
            name=names[position],
            macs_share=shares[position],
            head=all_heads[position],
            tail=all_tails[position],
            is_predicted=position not in measured,
            weights_bytes=_weights_bytes(manifest, position),
            features_bytes=_features_bytes(manifest, position),
        )
        for position in every
    ]
    return tuple(places), prediction


def fill(
    shares: Sequence[float], timings: Sequence[Timing | None], predict: Predict
) -> list[Timing]:
    """Predict every figure of the timings that are None; a predicted one counts no rounds."""
    figures = {
        name: predict(shares, [getattr(timing, name) if timing else None for timing in timings])
        for name in FIELDS
    }
    return [
        timing or Timing(count=0, **{name: figures[name][index] for name in FIELDS})
        for index, timing in enumerate(timings)
    ]


def _weights_bytes(manifest: Manifest, position: int) -> int:
    fused = manifest.cuts[position - 1].fused_head if 0 < position <= len(manifest.cuts) else None
    if fused:
        return fused.bytes
    return sum(segment.bytes for segment in manifest.segments[:position])


def _features_bytes(manifest: Manifest, position: int) -> int:
    """The largest sum of features at any position up to this one."""
    return max(
        sum(spec.raw_bytes() for spec in manifest.egress(before)) for before in range(position + 1)
    )


def _candidates(
    manifest: Manifest, rounds: Rounds, carriers: Sequence[Carrier], places: Sequence[Place]
) -> tuple[Candidate, ...]:
    nothing = summarise([])
    local = rounds.timing("local")
    found = [
        Candidate(
            cut=OUTPUT, codec="none", encode=nothing, decode=nothing, edge=local, cloud=nothing,
            bytes_mean=0, bytes_p95=0, is_lossless=True,
        )
    ]  # fmt: skip
    before = [rounds.timing(stage) for stage in ("picture", "normalise")]
    for number, carrier in enumerate(carriers):
        place = places[carrier.position]
        encode, decode = (rounds.timing(stage, number) for stage in ("encode", "decode"))
        edge, cloud = (rounds.timing(stage, number) for stage in ("edge", "cloud"))
        if place.is_predicted:
            edge = one_after_another([*before, place.head, encode])
            cloud = one_after_another([decode, place.tail])
        found.append(
            Candidate(
                cut=manifest.positions[carrier.position],
                codec=carrier.codec.name,
                quality=carrier.quality,
                encode=encode,
                decode=decode,
                edge=edge,
                cloud=cloud,
                bytes_mean=float(np.mean(carrier.sizes)),
                bytes_p95=float(np.percentile(carrier.sizes, 95)),
                agreement=estimate(carrier.hits) if carrier.hits else carrier.agreement,
                agreement_on=len(carrier.hits) or carrier.agreement_on,
                is_lossless=carrier.is_lossless,
            )
        )
    return tuple(found)


def one_after_another(timings: Sequence[Timing]) -> Timing:
    """Predict stages in a row: medians add up, and so do the squares of what p90 is above them.

    The second holds for independent normal times.
    """

    def total(median: str, p90: str) -> tuple[float, float]:
        middle = sum(getattr(timing, median) for timing in timings)
        above = [getattr(timing, p90) - getattr(timing, median) for timing in timings]
        return middle, middle + math.hypot(*above)

    wall, native = total("median_s", "p90_s"), total("native_median_s", "native_p90_s")
    return Timing(
        median_s=wall[0], p90_s=wall[1], native_median_s=native[0], native_p90_s=native[1], count=0
    )
