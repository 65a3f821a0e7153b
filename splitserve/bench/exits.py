"""`splitserve bench exits`: easy inputs answered early, against sending everything to the cloud."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from splitserve.agreement import estimate, log_shares
from splitserve.artifact import Artifact, load_artifact
from splitserve.bench.codec import refuse_known
from splitserve.bench.rates import top1_change
from splitserve.calibrate import Inputs, best_class, frame_bytes, model_input, read_inputs
from splitserve.codec import Codec, Codecs, build_codec
from splitserve.defence import defend
from splitserve.errors import UsageError
from splitserve.exits import (
    AGREEMENT,
    ExitHead,
    UploadBudget,
    positions_with_exit,
    require_floor,
)
from splitserve.output import print_document
from splitserve.runtime import RuntimeOptions, open_chain
from splitserve.settings import Counts, Names, Settings
from splitserve.tensors import Tensors

BUDGETS = (90, 80, 70, 60, 50, 40, 30, 20, 10)
Row = dict[str, Any]
Flags = npt.NDArray[np.bool_]
Doubles = npt.NDArray[np.float64]


class Options(Settings):
    """Measure what early answers save and cost, for budgets of uploads.

    The pictures must be others than those of the calibration. Every picture goes through head,
    exit, codec and tail; who answers is decided as the agent decides it, picture by picture in a
    drawn order. With labels.csv in the folder (file, label) the change of top-1 is measured too.
    """

    model_config = SettingsConfigDict(
        cli_prog_name="splitserve bench exits",
        env_prefix="SPLITSERVE_BENCH_EXITS_",
        cli_shortcuts={"as-json": "json"},
    )

    artifact: CliPositionalArg[Path]
    """Artifact folder with exits."""
    images: Path
    """Folder of pictures, others than those of the calibration."""
    cuts: Names = Field(default=[])
    """Cuts to measure, comma-separated; by default every one that has an exit."""
    budgets: Counts = Field(default=list(BUDGETS))
    """Percent of the inputs to upload, comma-separated."""
    exit_agreement: float = Field(default=AGREEMENT, ge=0, le=100)
    """Percent of an exit's answers that must be the whole model's, by its calibration."""
    limit: int = Field(default=2000, ge=20)
    """Most pictures to use."""
    seed: int = 0
    """Of the order in which pictures are drawn."""
    threads: int = Field(default=0, ge=0)
    """Threads to compute with; 0 takes the cores there are."""
    as_json: bool = False
    """Print one JSON document."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What happened to every picture at one cut; all arrays are (pictures,).

    Args:
        head: the exit.
        codec: name of the codec.
        confidence: of the exit.
        own: best class of the exit.
        cloud: best class of the tail behind the codec.
        whole: best class of the unsplit model.
        hardness: the unsplit model's doubt, one less its largest probability.
        sizes: bytes of the request frames.
        labels: right classes; empty where they are not known.
    """

    head: ExitHead
    codec: str
    confidence: Doubles
    own: npt.NDArray[np.intp]
    cloud: npt.NDArray[np.intp]
    whole: npt.NDArray[np.intp]
    hardness: Doubles
    sizes: Doubles
    labels: npt.NDArray[np.intp]


def run(options: Options) -> int:
    """Measure and print."""
    artifact = load_artifact(options.artifact)
    manifest = artifact.manifest
    if manifest.preprocess is None:
        raise UsageError(f"{options.artifact} takes no pictures")
    asked = [manifest.position(name) for name in options.cuts]
    positions = asked or positions_with_exit(manifest, range(len(manifest.positions)))
    runtime = RuntimeOptions(threads=options.threads)
    heads = {position: ExitHead(artifact, position, runtime) for position in positions}
    if not heads:
        raise UsageError(
            f"{options.artifact} has no exit; run: splitserve calibrate {options.artifact} --images"
            " DIR --exits CUT"
        )
    console = Console(stderr=True)
    inputs = read_inputs(options.images, manifest, options.limit, options.seed)
    refuse_known(manifest, inputs)
    seen = look(artifact, inputs, heads, runtime, console)
    rows = [
        measure(one, budget, options.exit_agreement)
        for one in seen
        for budget in sorted(set(options.budgets), reverse=True)
    ]
    result = {
        "model": manifest.model.name,
        "artifact": artifact.id.hex(),
        "pictures": len(inputs),
        "inputs_sha256": inputs.sha256,
        "seed": options.seed,
        "exit_agreement": options.exit_agreement,
        "rows": rows,
    }
    if options.as_json:
        print_document(result)
    else:
        _show(result)
    return 0


def look(
    artifact: Artifact,
    inputs: Inputs,
    heads: dict[int, ExitHead],
    runtime: RuntimeOptions,
    console: Console,
) -> list[Seen]:
    """Send every picture through every exit, and through codec and tail behind it."""
    manifest, chain = artifact.manifest, open_chain(artifact, runtime)
    output = manifest.outputs[0].name
    codecs = {position: _codec(artifact, position) for position in heads}
    facts: dict[int, list[tuple[float, int, int, int]]] = {position: [] for position in heads}
    whole, doubts = [], []
    for pixels in track(inputs.pixels, "measuring", console=console, transient=True):
        tensors: Tensors = model_input(pixels, manifest)
        answer = chain.run(tensors, 0, len(chain))[output]
        whole.append(best_class(answer))
        doubts.append(1 - float(np.exp(log_shares(answer).max())))
        reached = 0
        for position in sorted(heads):
            tensors, reached = chain.run(tensors, reached, position), position
            own, confidence = heads[position].run(tensors)
            decoded, size = _carry(artifact, position, codecs[position], tensors)
            got = chain.run(decoded, position, len(chain))[output]
            facts[position].append((confidence, best_class(own[output]), best_class(got), size))
    found = []
    for position in sorted(heads):
        table = np.array(facts[position])
        found.append(
            Seen(
                head=heads[position],
                codec=codecs[position].name,
                confidence=table[:, 0],
                own=table[:, 1].astype(np.intp),
                cloud=table[:, 2].astype(np.intp),
                whole=np.array(whole),
                hardness=np.array(doubts),
                sizes=table[:, 3],
                labels=np.array(inputs.labels, np.intp),
            )
        )
    return found


def _codec(artifact: Artifact, position: int) -> Codec:
    """Take step-ans at its default rate where the cut is calibrated, as the agent does."""
    calibration = artifact.manifest.cuts[position - 1].calibration
    if calibration and calibration.rates:
        return Codecs(artifact).encoder("step-ans", position)
    return build_codec("affine-u8")


def _carry(
    artifact: Artifact, position: int, codec: Codec, tensors: Tensors
) -> tuple[Tensors, int]:
    """Encode and decode one picture's features; return them with the bytes of the frame."""
    specs = artifact.manifest.egress(position)
    values = defend(artifact.manifest.defence(position), [tensors[spec.name] for spec in specs])
    payloads = [codec.encode(value, index) for index, value in enumerate(values)]
    decoded = {
        spec.name: codec.decode(memoryview(payload), value.shape, spec.dtype, index)
        for index, (spec, payload, value) in enumerate(zip(specs, payloads, values, strict=True))
    }
    return decoded, frame_bytes(position, codec, values, payloads)


def measure(seen: Seen, budget: float, agreement: float) -> Row:
    """Replay the pictures under one budget, as drawn and by the harder and the easier half."""
    floor = require_floor(seen.head.facts, agreement, seen.head.cut)
    is_early = decide(seen, budget, floor.threshold, np.arange(len(seen.confidence)))
    answers = np.where(is_early, seen.own, seen.cloud)
    order = np.argsort(seen.hardness, kind="stable")
    halves = {"easier": order[: len(order) // 2], "harder": order[len(order) // 2 :]}
    start = UploadBudget(seen.head.facts, budget, floor.threshold).threshold
    row: Row = {
        "cut": seen.head.cut,
        "codec": seen.codec,
        "budget": budget,
        "upload": _percent(~is_early),
        "upload_untracked": _percent(seen.confidence < start),
        "floor": floor.threshold,
        "floor_upload": floor.upload,
        "early": _share((seen.own == seen.whole)[is_early]),
        "early_confidence": _mean(seen.confidence[is_early]),
        "agreement": _share(answers == seen.whole),
        "agreement_cloud_only": _share(seen.cloud == seen.whole),
        "bytes_mean": round(float(np.mean(np.where(is_early, 0.0, seen.sizes))), 1),
        "bytes_mean_cloud_only": round(float(seen.sizes.mean()), 1),
    }
    for name, half in halves.items():
        drawn = np.sort(half)  # in the drawn order
        early = decide(seen, budget, floor.threshold, drawn)
        row[f"upload_{name}"] = _percent(~early)
        row[f"early_{name}"] = _share((seen.own == seen.whole)[drawn][early])
    if len(seen.labels):
        right, before = answers == seen.labels, seen.cloud == seen.labels
        row["top1"], row["top1_cloud_only"] = _share(right), _share(before)
        row |= top1_change((right.astype(int) - before).tolist())
    return row


def decide(seen: Seen, budget: float, floor: float, order: npt.NDArray[np.intp]) -> Flags:
    """Whether each picture of a stream is answered early, decided as the agent does."""
    gate = UploadBudget(seen.head.facts, budget, floor)
    return np.array([gate.takes(float(confidence)) for confidence in seen.confidence[order]])


def _percent(flags: Flags) -> float:
    return round(100 * float(flags.mean()), 2)


def _share(hits: Flags) -> dict[str, float] | None:
    """Share of hits with its interval, percent; None of nothing."""
    return estimate(hits.tolist()).model_dump() if hits.size else None


def _mean(values: Doubles) -> float | None:
    return round(100 * float(values.mean()), 2) if values.size else None


def _show(result: Row) -> None:
    table = Table(
        title=f"{escape(result['model'])}: early answers, {result['pictures']} pictures",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    last = "top-1" if any("top1" in row for row in result["rows"]) else "agree"
    table.add_column("cut", overflow="fold", min_width=7)
    for name in ("budget", "upload", "easier", "harder", "early agree", last, "bytes"):
        table.add_column(name, justify="right", no_wrap=True)
    shown = ""
    for row in result["rows"]:
        if shown not in ("", row["cut"]):
            table.add_section()
        early, judged = row["early"], f"{row['agreement']['value']:.1f}"
        if "top1_change" in row:
            half = (row["top1_change_high"] - row["top1_change_low"]) / 2
            judged = f"{row['top1_change']:+.2f}±{half:.2f}"
        table.add_row(
            "" if shown == row["cut"] else escape(row["cut"]),
            f"{row['budget']:g}",
            f"{row['upload']:.1f}",
            f"{row['upload_easier']:.1f}",
            f"{row['upload_harder']:.1f}",
            f"{early['value']:.1f} ({early['low']:.1f}-{early['high']:.1f})" if early else "",
            judged,
            f"{row['bytes_mean']:,.0f}",
        )
        shown = row["cut"]
    Console().print(table)
    Console(stderr=True).print("\n".join(_notes(result["rows"])), highlight=False, markup=False)


def _notes(rows: Sequence[Row]) -> list[str]:
    """Say what the columns are, and for each cut what sending everything gives."""
    notes = [
        "upload: share of all pictures; easier, harder: the same when the stream holds only the"
        " half of which the whole model is surer, or less sure. Agreement is with the unsplit"
        " model, top-1 the change in points against sending everything (95 % interval, pairs).",
    ]
    for row in {row["cut"]: row for row in rows}.values():
        top1 = f", top-1 {row['top1_cloud_only']['value']:.1f} %" if "top1" in row else ""
        notes.append(
            f"{row['cut']}, everything by {row['codec']}: {row['bytes_mean_cloud_only']:,.0f}"
            f" bytes, agreement {row['agreement_cloud_only']['value']:.1f} %{top1}; early answers"
            f" need a confidence of {row['floor']:.4f}, which {row['floor_upload']:.0f} % of the"
            " calibration's inputs did not reach"
        )
    return notes
