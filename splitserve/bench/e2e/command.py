"""`splitserve bench e2e`: plan, run, and see whether the plan was right."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_settings import CliPositionalArg, NoDecode, SettingsConfigDict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from splitserve.artifact import Artifact, load_artifact
from splitserve.bench import replay
from splitserve.bench.e2e.arms import Arm, choose_arms, plan_file
from splitserve.bench.e2e.cells import measure_cell
from splitserve.bench.e2e.figures import summarise
from splitserve.bench.e2e.flows import (
    BLOCKS,
    IN_FLIGHT,
    as_throughput,
    beside,
    best_flow,
    crossing_bps,
    measure_flows,
)
from splitserve.bench.e2e.plots import draw_latencies
from splitserve.bench.e2e.prepare import Place, Sheet, Wish, classes, halves, make_sheet, profiled
from splitserve.bench.e2e.report import show, write_report
from splitserve.bench.e2e.result import Cell, Result, Throughput
from splitserve.bench.e2e.rig import rigged
from splitserve.errors import UsageError
from splitserve.output import print_document
from splitserve.picture import list_pictures
from splitserve.plans import Link
from splitserve.profile.machine import describe_machine
from splitserve.settings import Names, Settings, split_commas

FLOW_PICTURES = 30
FLOW_RTT_S = 0.02
DRIFT = 0.1
Numbers = Annotated[list[Annotated[float, Field(gt=0)]], NoDecode, BeforeValidator(split_commas)]


class Options(Settings):
    """Compare every way to run an artifact over emulated links, and the planner with all of them.

    Profiles this machine as the cloud and, slowed down, as the device; plans for every link; then
    streams pictures through all arms in turn. The pictures are split in two: those profiled are
    not those measured on.
    """

    model_config = SettingsConfigDict(
        cli_prog_name="splitserve bench e2e",
        env_prefix="SPLITSERVE_BENCH_E2E_",
        cli_shortcuts={"as-json": "json", "output": "o"},
    )

    artifact: CliPositionalArg[Path]
    """Calibrated artifact."""
    images: Path
    """Folder of pictures, half of them to profile with and half to measure on."""
    links: Names = Field(default=["0.25/100", "1.1/70", "5.85/50", "18.88/20", "100/4"])
    """Links, comma-separated: Mbit/s in either direction, slash, round trip in ms."""
    crossings: Numbers = Field(default=[20.0, 4.0])
    """Round trips, ms, at which to measure B* too, the rate where a split is worth most."""
    slowdowns: Numbers = Field(default=[16.0, 4.0], min_length=1)
    """How many times slower the device computes than this machine."""
    cuts: Names = Field(default_factory=list)
    """Cuts to run statically; by default the three that are fastest over these links."""
    agreement: float = Field(default=98.0, ge=0, le=100)
    """Percent of answers that must be the unsplit model's, of all arms but the raw upload."""
    requests: int = Field(default=100, ge=8, le=10_000)
    """Requests of each arm on each link."""
    warm_up: int = Field(default=20, ge=0, le=1000)
    """Requests before them that do not count."""
    rounds: int = Field(default=30, ge=1)
    """Rounds of each profile."""
    threads: int = Field(default=0, ge=0, le=1024)
    """Threads of the device; 0 means the cores this process may use."""
    trace: Path | None = None
    """File of lines `seconds,bits_per_second`: replay it, at the first slowdown, in place of the
    links, with the edge alone, each plan by itself and the adaptive agent; draws trace.png."""
    files: bool = False
    """Send the picture files as they are; by default they are first written as uncompressed frames
    of the size that the model resizes to, as a camera delivers them."""
    seed: int = 0
    """Of the order of the pictures and of the resampling."""
    output: Path = Path("build/e2e")
    """Folder for report.html, result.json, latency.png and the profiles."""
    as_json: bool = False
    """Print the result as one JSON document."""


def run(options: Options) -> int:
    """Profile, plan, measure and report."""
    console = Console(stderr=True)
    artifact = load_artifact(options.artifact)
    preprocess = artifact.manifest.preprocess
    if preprocess is None:
        raise UsageError(f"{options.artifact}: the model takes no pictures")
    short_side = None if options.files else preprocess.resize_short_side
    wish = Wish(
        places=[_read_link(text) for text in options.links],
        crossings_s=[rtt_ms / 1e3 for rtt_ms in options.crossings],
        cuts=options.cuts,
        agreement=options.agreement,
        seed=options.seed,
    )
    options.output.mkdir(parents=True, exist_ok=True)
    cells: list[Cell] = []
    flows: list[Throughput] = []
    with tempfile.TemporaryDirectory() as folder:
        first, second = halves(options.images, Path(folder), options.seed, short_side)
        with console.status("running the unsplit model"):
            pictures = classes(artifact, list_pictures(second))
        with console.status("profiling the cloud"):
            cloud = profiled(artifact, first, options.output / "cloud.json", _flags(options))
        for slowdown in options.slowdowns:
            target = options.output / f"device-{slowdown:g}x.json"
            slow = ["--slowdown", f"{slowdown:g}"]
            with console.status(f"profiling a device {slowdown:g} times slower"):
                edge = profiled(artifact, first, target, [*_flags(options), *slow])
            sheet = make_sheet(artifact, edge, cloud, wish)
            if options.trace:
                return _replay(options, options.trace, sheet, second)
            cells += _latencies(options, sheet, pictures, console)
            flows += _throughput(options, sheet, [path for path, _ in pictures], console)
            counts = {"profiled": cloud.pictures.count, "measured": len(pictures)}
            result = _result(options, artifact, counts, (cells, flows))
            _write(result, options.output)  # after each slowdown: a long run leaves what it has
    if options.as_json:
        print_document(asdict(result))
    else:
        show(result, Console(), options.output / "report.html")
    return 0


def _result(
    options: Options,
    artifact: Artifact,
    pictures: Mapping[str, int],
    found: tuple[Sequence[Cell], Sequence[Throughput]],
) -> Result:
    cells, flows = found
    return Result(
        model=artifact.manifest.model.name,
        artifact_id=artifact.id.hex(),
        machine=describe_machine().model_dump(),
        requests=options.requests,
        warm_up=options.warm_up,
        floor=options.agreement,
        pictures=pictures,
        are_files=options.files,
        cells=tuple(cells),
        throughput=tuple(flows),
        summary=summarise(cells),
        notes=tuple(_drifts(cells)),
    )


def _write(result: Result, folder: Path) -> None:
    (folder / "result.json").write_text(json.dumps(asdict(result), indent=1) + "\n")
    write_report(result, folder / "report.html")
    draw_latencies(result.cells).savefig(folder / "latency.png", dpi=110)


def _flags(options: Options) -> list[str]:
    return ["--rounds", str(options.rounds), "--threads", str(options.threads)]


def _latencies(
    options: Options, sheet: Sheet, pictures: Sequence[tuple[Path, int]], console: Console
) -> list[Cell]:
    arms, plans = _planned(options, sheet)
    turns = options.warm_up, options.requests
    cells = []
    with (
        _progress(console) as progress,
        rigged(sheet.artifact.root, arms, plans, _agent_flags(options, sheet)) as rig,
    ):
        bar = progress.add_task("", total=len(sheet.settings) * sum(turns), label="latency")
        for setting in sheet.settings:
            label = f"{sheet.slowdown:g}x slower, {setting.name}"
            progress.update(bar, label=label)
            cells.append(
                measure_cell(rig, arms, setting, pictures, turns, lambda: progress.advance(bar))
            )
    return cells


def _planned(options: Options, sheet: Sheet) -> tuple[list[Arm], Path]:
    """The arms, and the plan file of the adaptive one."""
    arms = choose_arms(sheet.offers, sheet.decisions, sheet.cuts)
    links = [setting.link for setting in sheet.settings]
    target = options.output / f"plans-{sheet.slowdown:g}x.json"
    target.write_text(plan_file(arms, links, sheet.artifact).model_dump_json(indent=1) + "\n")
    return arms, target


def _throughput(
    options: Options, sheet: Sheet, pictures: Sequence[Path], console: Console
) -> list[Throughput]:
    """Where the upload's transfer takes as long as the whole model on the device."""
    edge, upload = sheet.cheapest("edge"), sheet.cheapest("cloud")
    if edge is None or upload is None:
        return []
    rate_bps = crossing_bps(edge.option, upload.option)
    link = Link(uplink_bps=rate_bps, rtt_s=FLOW_RTT_S)
    split = best_flow(sheet.offers, link)
    if split is None:
        return []
    chosen = {"edge": edge, "cloud": upload, "split": split}
    arms = [Arm(offer.option.name, role, offer) for role, offer in chosen.items()]
    flags = [*_agent_flags(options, sheet), "--in-flight", str(IN_FLIGHT)]
    with (
        _progress(console) as progress,
        rigged(sheet.artifact.root, arms, Path(), flags) as rig,
    ):
        label = f"{sheet.slowdown:g}x slower, throughput"
        bar = progress.add_task("", total=BLOCKS * len(arms), label=label)
        block = [pictures[index % len(pictures)] for index in range(FLOW_PICTURES)]
        flows = measure_flows(rig, arms, link, block, lambda: progress.advance(bar))
    side_by_side = beside(edge.option, upload.option, link)
    return [as_throughput(sheet.slowdown, link, flows, side_by_side)]


def _replay(options: Options, trace: Path, sheet: Sheet, pictures: Path) -> int:
    """Plan as for the links, and replay a trace with the plans, as `splitserve bench replay`."""
    _, plans = _planned(options, sheet)
    return replay.run(
        replay.Options(
            artifact=sheet.artifact.root,
            plan=plans,
            images=pictures,
            trace=trace,
            slowdown=sheet.slowdown,
            plot=options.output / "trace.png",
            as_json=options.as_json,
        )
    )


def _agent_flags(options: Options, sheet: Sheet) -> list[str]:
    return ["--slowdown", f"{sheet.slowdown:g}", "--threads", str(options.threads)]


def _progress(console: Console) -> Progress:
    columns = TextColumn("{task.fields[label]}"), BarColumn(), MofNCompleteColumn()
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True)


def _drifts(cells: Sequence[Cell]) -> list[str]:
    """Cells in which the device was not as slow as was asked for."""
    return [
        f"{cell.name}: asked for {cell.slowdown:g} times slower, measured"
        f" {cell.slowdown_measured:.1f}: its figures are void"
        for cell in cells
        if abs(cell.slowdown_measured / cell.slowdown - 1) > DRIFT
    ]


def _read_link(text: str) -> Place:
    rate, _, rtt = text.partition("/")
    try:
        place = Place(float(rate) * 1e6, float(rtt) / 1e3)
    except ValueError as error:
        raise UsageError(f"--links: {text!r} is no `Mbit/s/ms`, as 5.85/50") from error
    if not (0 < place.rate_bps < 1e11 and 0 <= place.rtt_s < 10):
        raise UsageError(f"--links: {text!r} is out of range")
    return place
