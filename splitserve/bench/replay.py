"""`splitserve bench replay`: a link that changes, fixed plans beside the adaptive agent."""

import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_settings import CliPositionalArg, NoDecode, SettingsConfigDict
from rich.console import Console
from rich.progress import Progress

from splitserve.artifact import OUTPUT, load_artifact
from splitserve.bench.flow import Flow, agent_words, ask_steadily, warm_up
from splitserve.bench.link import Link, LinkSettings, self_test
from splitserve.bench.play import play
from splitserve.bench.process import Process, running, running_service
from splitserve.bench.replay_figures import ADAPTIVE, EDGE_ONLY, Run, Segment, figures, segments_of
from splitserve.bench.replay_plot import draw_replay
from splitserve.bench.replay_report import print_replay
from splitserve.errors import UsageError
from splitserve.output import print_document
from splitserve.picture import list_pictures
from splitserve.plan.trace import Change, read_trace
from splitserve.plans import PlanFile, PlanOption, read_plans
from splitserve.settings import Settings, split_commas

EXIT_MISSED = 3
STAIRCASE_BPS = (20e6, 1e6, 5e6, 0.0, 20e6)
STAIR_S = 30.0

Tick = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Static:
    """A fixed plan, as `cut:codec:quality`; codec and quality may be left out."""

    cut: str
    codec: str | None = None
    quality: float | None = None


def read_statics(value: object) -> list[Static]:
    """Several fixed plans, comma-separated."""
    statics = []
    for text in split_commas(value):
        cut, codec, quality, *more = [*text.split(":"), "", ""][: max(3, text.count(":") + 1)]
        try:
            number = float(quality) if quality else None
        except ValueError:
            more = [quality]
        if not cut or more:
            raise ValueError(f"{text!r} is not cut:codec:quality, as block5:step-ans:98")
        statics.append(Static(cut, codec or None, number))
    return statics


class Options(Settings):
    """Replay a link that changes for the edge alone, for fixed plans, and for the adaptive agent.

    Each is a real agent and a real service over an emulated link, one after the other. Requests
    are due at a fixed rate, whether or not those before are answered, and their latency counts
    from when they are due. Exit status 3 says that a target was missed.
    """

    model_config = SettingsConfigDict(
        cli_prog_name="splitserve bench replay", env_prefix="SPLITSERVE_BENCH_REPLAY_"
    )

    artifact: CliPositionalArg[Path]
    """Artifact folder."""
    plan: Path
    """File of `splitserve plan`: what the adaptive agent chooses from. Each of its plans that
    uses the cloud is also replayed by itself."""
    images: Path
    """Folder of pictures."""
    trace: Path | None = None
    """File of lines `seconds,bits_per_second`; the last one lasts as long as the one before. By
    default 20, 1, 5, 0 and 20 Mbit/s for 30 s each."""
    static: Annotated[list[Static], NoDecode, BeforeValidator(read_statics)] = Field(
        default_factory=list
    )
    """Fixed plans to replay in place of those of the plan file: cut:codec:quality,..."""
    slowdown: float = Field(default=12.0, ge=1, le=1000)
    """How many times slower the edge computes than this machine."""
    rate: float = Field(default=5.0, gt=0, le=1000)
    """Requests a second."""
    deadline_s: float = Field(default=2.0, gt=0, le=3600)
    """Seconds from taking an input up to its answer, for every agent."""
    delay_ms: float = Field(default=10.0, ge=0, le=5000)
    """One-way delay of the link, ms."""
    seed: int = 0
    """Of the bootstrap."""
    plot: Path | None = None
    """PNG file to draw the replay into."""
    as_json: bool = False
    """Print one JSON document, every request in it."""


@dataclass(frozen=True, slots=True)
class Course:
    """What every arm goes through.

    Args:
        segments: of the link.
        pictures: taken in turn.
        rate_hz: requests a second.
        deadline_s: of every agent.
        delay_s: one-way, of the link.
        slowdown: of the edge.
    """

    segments: tuple[Segment, ...]
    pictures: tuple[Path, ...]
    rate_hz: float
    deadline_s: float
    delay_s: float
    slowdown: float

    @property
    def count(self) -> int:
        """Requests of one arm."""
        return round(self.segments[-1].end_s * self.rate_hz)


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to run the agent: the name of its plan, and flags."""

    name: str
    flags: tuple[str, ...]


def run(options: Options) -> int:
    """Replay and print."""
    console = Console(stderr=True)
    plans = read_plans(options.plan)
    arms = choose_arms(options, plans)
    course = read_course(options)
    fastest = max(segment.rate_bps for segment in course.segments)
    with console.status("testing the emulated link"):
        self_test(LinkSettings(fastest or None, course.delay_s))
    runs = []
    with Progress(console=console, transient=True) as progress:
        total_s = course.segments[-1].end_s
        for number, arm in enumerate(arms, 1):
            task = progress.add_task(f"{arm.name} ({number} of {len(arms)})", total=total_s)
            runs.append(replay(options.artifact, arm, course, partial(progress.advance, task)))
    result = figures(runs, course.segments, options.seed) | facts(options, course, plans)
    if options.plot:
        draw_replay(runs, result, options.plot)
    if options.as_json:
        print_document(result | {"requests": {one.name: one.rows() for one in runs}})
    else:
        print_replay(result, Console())
    return 0 if all(target["is_met"] for target in result["targets"]) else EXIT_MISSED


def choose_arms(options: Options, plans: PlanFile) -> list[Arm]:
    """The edge alone, every fixed plan, and the adaptive agent.

    Raises:
        UsageError: another artifact's plans, or an unknown cut.
    """
    artifact = load_artifact(options.artifact)
    if plans.artifact_id != artifact.id.hex():
        raise UsageError(
            f"{options.plan} was made for artifact {plans.artifact_id}, {options.artifact} is"
            f" {artifact.id.hex()}; make it again with: splitserve plan {options.artifact}"
        )
    local = next((one.name for one in plans.options if one.is_local), EDGE_ONLY)
    statics = options.static or [
        Static(one.cut, one.codec, one.quality) for one in plans.options if not one.is_local
    ]
    for static in statics:
        artifact.manifest.position(static.cut)
    return [
        Arm(local, ("--cut", OUTPUT)),
        *(_static_arm(static, plans.options) for static in statics if static.cut != OUTPUT),
        Arm(ADAPTIVE, ("--plan", str(options.plan))),
    ]


def _static_arm(static: Static, known: Iterable[PlanOption]) -> Arm:
    wanted = (static.cut, static.codec, static.quality)
    names = [one.name for one in known if (one.cut, one.codec, one.quality) == wanted]
    parts = [static.cut, static.codec, None if static.quality is None else f"{static.quality:g}"]
    flags = ["--cut", static.cut]
    flags += ["--codec", static.codec] if static.codec else []
    flags += ["--quality", str(static.quality)] if static.quality is not None else []
    return Arm(names[0] if names else " ".join(part for part in parts if part), tuple(flags))


def read_course(options: Options) -> Course:
    """What the arms go through.

    Raises:
        UsageError: no trace, no pictures.
    """
    trace = (
        read_trace(options.trace)
        if options.trace
        else [Change(STAIR_S * step, rate) for step, rate in enumerate(STAIRCASE_BPS)]
    )
    return Course(
        segments=segments_of(trace),
        pictures=tuple(list_pictures(options.images)),
        rate_hz=options.rate,
        deadline_s=options.deadline_s,
        delay_s=options.delay_ms / 1e3,
        slowdown=options.slowdown,
    )


def replay(artifact: Path, arm: Arm, course: Course, tick: Tick) -> Run:
    """Run one arm from the first to the last segment, with a service and a link of its own.

    A few requests before the start, at the first rate, open the connection and are not counted.

    Raises:
        MeasurementError: a process has died.
    """
    settings = LinkSettings(course.segments[0].rate_bps or None, course.delay_s)
    with (
        running_service(artifact) as (_, host, port),
        Link((host, port), settings) as link,
        running(*_words(artifact, link, course), *arm.flags) as agent,
    ):
        warm_up(agent, course.pictures)
        flow = _flow(agent, link, course, tick)
        log = agent.finish()
    return Run(arm.name, flow, tuple(read_log(log)))


def _words(artifact: Path, link: Link, course: Course) -> tuple[str, ...]:
    url = f"http://{link.address[0]}:{link.address[1]}"
    return agent_words(artifact, url, course.slowdown, course.deadline_s)


def _flow(agent: Process, link: Link, course: Course, tick: Tick) -> Flow:
    trace = [Change(segment.start_s, segment.rate_bps) for segment in course.segments]
    stop = threading.Event()
    player = threading.Thread(target=play, args=(trace, link.set_rate, stop), daemon=True)
    player.start()
    try:
        return ask_steadily(agent, course.pictures, course.count, course.rate_hz, tick)
    finally:
        stop.set()
        player.join()


def read_log(text: str) -> list[dict[str, Any]]:
    """The lines of an agent's log that are JSON objects."""
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return [line for line in lines if isinstance(line, dict)]


def facts(options: Options, course: Course, plans: PlanFile) -> dict[str, Any]:
    """What makes a result repeatable."""
    return {
        "artifact_id": plans.artifact_id,
        "plans": [one.name for one in plans.options],
        "rate_hz": course.rate_hz,
        "deadline_s": course.deadline_s,
        "delay_s": course.delay_s,
        "slowdown": course.slowdown,
        "pictures": len(course.pictures),
        "seed": options.seed,
    }
