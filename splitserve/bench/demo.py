"""`splitserve demo`: the main job on one machine, every way to run it over one emulated link."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from pydantic_settings import SettingsConfigDict
from rich.console import Console
from rich.progress import Progress

from splitserve.artifact import INPUT, OUTPUT, Manifest
from splitserve.bench.demo_audit import audit_demo
from splitserve.bench.demo_report import print_report
from splitserve.bench.fixture import MODEL, calibrated, prepared
from splitserve.bench.link import Link, LinkSettings, SelfTest, self_test
from splitserve.bench.measure import in_turn, median, p95, ratio_interval, slowdown_of
from splitserve.bench.process import Process, running, running_service
from splitserve.bench.samples import Sample, write_views
from splitserve.errors import MeasurementError
from splitserve.output import print_document
from splitserve.picture import read_picture
from splitserve.runtime import Graph, RuntimeOptions
from splitserve.settings import Settings

ANSWER_S = 60.0
AGREEMENT_FLOOR = 0.9
LATE_SHARE = 0.95
CUTS = 3
ALONE = ("--no-temporal",)  # the views do not follow one another


class Options(Settings):
    """Split EfficientNet-Lite0 over an emulated link and compare every way to run it.

    Starts a cloud process, an agent process per arm and the link between them, streams sample
    pictures through all arms in turn, prints labels, latencies and where the time went, and stops
    everything it started.
    """

    model_config = SettingsConfigDict(
        cli_prog_name="splitserve demo", env_prefix="SPLITSERVE_DEMO_"
    )

    rate_mbps: float = Field(default=5.85, ge=0.1, le=10_000)
    """Rate of the link in either direction, Mbit/s."""
    delay_ms: float = Field(default=10.0, ge=0, le=5000)
    """One-way delay of the link, ms; the round trip is twice this."""
    slowdown: float = Field(default=16.0, ge=1, le=1000)
    """How many times slower the edge computes than this machine; the report says what it was."""
    rounds: int = Field(default=6, ge=1, le=1000)
    """Views of each of the five pictures."""
    jpeg_quality: int = Field(default=95, ge=1, le=100)
    """Quality of the cloud-JPEG arm."""
    webp_quality: int = Field(default=80, ge=1, le=100)
    """Quality of the cloud-WebP arm."""
    build: Path = Path("build")
    """Folder that keeps the exported model between runs."""
    seed: int = 0
    """Of the views."""
    audit: bool = False
    """Afterwards attack the features of the last cut that ran, as the cloud could: some minutes
    more, and a report in the build folder."""
    as_json: bool = False
    """Print one JSON document."""


@dataclass(slots=True)
class Arm:
    """One way to run the model, and what was measured of it."""

    name: str
    cut: str
    flags: tuple[str, ...] = ()
    answers: list[dict[str, Any]] = field(default_factory=list)

    def summary(self, wanted: Sequence[int]) -> dict[str, Any]:
        """Figures of the arm; `wanted` holds the unsplit model's class per view."""
        totals = [float(answer["total_s"]) for answer in self.answers]
        got = [answer["labels"][0]["index"] for answer in self.answers]
        stages = sorted({stage for answer in self.answers for stage in answer["stages_s"]})
        return {
            "name": self.name,
            "cut": self.cut,
            "flags": " ".join(self.flags),
            "bytes_up": round(median([answer["bytes_up"] for answer in self.answers])),
            "p50_s": median(totals),
            "p95_s": p95(totals),
            "agree": sum(a == b for a, b in zip(got, wanted, strict=True)),
            "requests": len(got),
            "slowdown": median([slowdown_of(answer) for answer in self.answers]),
            "stages_s": {
                stage: median([answer["stages_s"].get(stage, 0.0) for answer in self.answers])
                for stage in stages
            },
        }


def run(options: Options) -> int:
    """Run the demo."""
    console = Console(stderr=True)
    with console.status(f"preparing {MODEL} (exported once)"):
        model, artifact = prepared(options.build)
    settings = LinkSettings(options.rate_mbps * 1e6, options.delay_ms / 1e3)
    with console.status("testing the emulated link"):
        checked = self_test(settings)
    arms = choose_arms(artifact.manifest, options)
    with Progress(console=console, transient=True) as progress:
        splits = [arm.cut for arm in arms if arm.cut not in (INPUT, OUTPUT)]
        artifact = calibrated(options.build, splits, progress)
    with tempfile.TemporaryDirectory() as folder:
        views = write_views(Path(folder), options.rounds, options.seed)
        wanted = _unsplit(model, artifact.manifest, views)
        with (
            running_service(artifact.root) as (_, host, port),
            Link((host, port), settings) as link,
            _agents(arms, artifact.root, link, options.slowdown) as agents,
            Progress(console=console, transient=True) as progress,
        ):
            task = progress.add_task("streaming pictures", total=len(views) * len(arms))
            for turn, (_, path) in enumerate(views):
                for index in in_turn(len(arms), turn):
                    arms[index].answers.append(_ask(agents[index], path))
                    progress.advance(task)
    result = _result(options, checked, arms, wanted, views)
    if not options.as_json:
        print_report(result, Console())
    if options.audit:
        last = artifact, splits[-1], options.build
        result["audit"] = str(audit_demo(*last, is_quiet=options.as_json))
    if options.as_json:
        print_document(result)
    return 0


def choose_arms(manifest: Manifest, options: Options) -> list[Arm]:
    """The two extremes, the picture in two formats, and three cuts.

    The cuts are the artifact's last ones before 95 % of the work: they send least, and leave the
    cloud something to do.
    """
    arms = [
        Arm("edge only", OUTPUT),
        Arm("cloud, JPEG", INPUT, ("--codec", "jpeg", "--quality", str(options.jpeg_quality))),
        Arm("cloud, WebP", INPUT, ("--codec", "webp", "--quality", str(options.webp_quality))),
    ]
    useful = [cut.name for cut in manifest.cuts if cut.macs_share < LATE_SHARE]
    return arms + [Arm(f"split at {name}", name, ALONE) for name in useful[-CUTS:]]


@contextlib.contextmanager
def _agents(
    arms: Sequence[Arm], artifact: Path, link: Link, slowdown: float
) -> Iterator[list[Process]]:
    """Start one agent per arm, fed through its standard input, and warm them up."""
    with contextlib.ExitStack() as stack:
        url = f"http://{link.address[0]}:{link.address[1]}"
        shared = ("--artifact", str(artifact), "--cloud", url, "--source", "-")
        patient = ("--slowdown", str(slowdown), "--deadline-s", "30", "--log-level", "ERROR")
        yield [
            stack.enter_context(running("agent", *shared, *patient, "--cut", arm.cut, *arm.flags))
            for arm in arms
        ]


def _ask(agent: Process, path: Path) -> dict[str, Any]:
    agent.say(str(path))
    answer = agent.hear(ANSWER_S)
    problem = answer["error"] or answer["fallback"]
    if problem:
        raise MeasurementError(f"{path.name}: {problem}")
    return answer


def _unsplit(model: Path, manifest: Manifest, views: Sequence[tuple[Sample, Path]]) -> list[int]:
    """Class that the whole ONNX file gives to each view, in this process."""
    if manifest.preprocess is None:
        raise MeasurementError("the model takes no pictures")
    graph = Graph(model.read_bytes(), RuntimeOptions())
    classes = []
    for _, path in views:
        outputs = graph.run({manifest.inputs[0].name: read_picture(path, manifest.preprocess)})
        classes.append(int(np.argmax(outputs[manifest.outputs[0].name][0])))
    return classes


def _result(
    options: Options,
    checked: SelfTest,
    arms: Sequence[Arm],
    wanted: Sequence[int],
    views: Sequence[tuple[Sample, Path]],
) -> dict[str, Any]:
    rows = [arm.summary(wanted) for arm in arms]
    good = [i for i, row in enumerate(rows) if row["agree"] >= AGREEMENT_FLOOR * row["requests"]]
    by_time = sorted(good, key=lambda index: float(rows[index]["p50_s"]))
    winner = by_time[0]  # the edge alone always agrees, so there is one
    is_split = [arm.cut not in (INPUT, OUTPUT) for arm in arms]
    rival = next((i for i in by_time if is_split[i] != is_split[winner]), winner)
    totals = [[float(answer["total_s"]) for answer in arm.answers] for arm in arms]
    ratio, low, high = ratio_interval(totals[rival], totals[winner], options.seed)
    tied = [
        rows[i]["name"]
        for i in by_time[1:]
        if ratio_interval(totals[i], totals[winner], options.seed)[1] <= 1
    ]
    return {
        "link": {
            "rate_mbps": options.rate_mbps,
            "delay_ms": options.delay_ms,
            "measured_rate_mbps": (checked.rate_bps or 0.0) / 1e6,
            "measured_round_trip_ms": checked.round_trip_s * 1e3,
        },
        "slowdown": median([row["slowdown"] for row in rows]),
        "pictures": [
            {
                "file": sample.file,
                "shows": sample.shows,
                "is_right": {
                    a.name: a.answers[i]["labels"][0]["name"] in sample.labels for a in arms
                },
                "labels": {a.name: a.answers[i]["labels"][0] for a in arms},
            }
            for i, (sample, path) in enumerate(views)
            if path.name.startswith("000-")
        ],
        "arms": rows,
        "winner": rows[winner]["name"],
        "rival": rows[rival]["name"],
        "is_split": is_split[winner],
        "tied": tied,
        "faster_but_below_floor": [
            row["name"]
            for index, row in enumerate(rows)
            if index not in good and row["p50_s"] < rows[winner]["p50_s"]
        ],
        "agreement_floor": AGREEMENT_FLOOR,
        "gain": {"ratio": ratio, "low": low, "high": high},
    }
