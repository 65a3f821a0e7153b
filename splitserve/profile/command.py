"""`splitserve profile`: measure what every part of an artifact costs on this machine."""

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_settings import CliPositionalArg, NoDecode, SettingsConfigDict
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from splitserve.artifact import Manifest, load_artifact
from splitserve.codec import use_one_thread
from splitserve.errors import UsageError
from splitserve.output import print_document
from splitserve.profile.document import Profile, Timing
from splitserve.profile.inputs import gather_inputs
from splitserve.profile.whole import Task, profile_artifact
from splitserve.settings import Names, Settings, split_commas

Quality = Annotated[int, Field(ge=1, le=100)]
Qualities = Annotated[list[Quality], NoDecode, BeforeValidator(split_commas)]


class Options(Settings):
    """Measure heads, tails, codecs and memory of an artifact on this machine.

    Everything is timed in turn, round after round: the head up to each cut as the agent runs it,
    the tail as the service does, every codec at every cut, JPEG and WebP at several qualities.
    Take one profile on the device and one in the cloud, and give both to `splitserve plan`.
    """

    model_config = SettingsConfigDict(
        cli_prog_name="splitserve profile",
        env_prefix="SPLITSERVE_PROFILE_",
        cli_shortcuts={"as-json": "json", "output": "o"},
    )

    artifact: CliPositionalArg[Path]
    """Artifact folder."""
    images: Path | None = None
    """Folder of pictures like those the device will see; by default seeded noise, which leaves the
    agreement of jpeg, webp, affine-u8 and raw unknown."""
    output: Path | None = None
    """File to write; by default profile.json, and with --json none."""
    cuts: Names = Field(default_factory=list)
    """Cuts whose heads and tails are timed, comma-separated; by default all. The others are
    predicted from them."""
    jpeg_qualities: Qualities = Field(default=[50, 75, 90, 95, 98])
    """JPEG candidates, comma-separated."""
    webp_qualities: Qualities = Field(default=[50, 75, 90, 95, 98])
    """WebP candidates, comma-separated."""
    rounds: int = Field(default=30, ge=1)
    """Rounds that count."""
    warm_up: int = Field(default=3, ge=0)
    """Rounds before them."""
    limit: int = Field(default=200, ge=1)
    """Most pictures to use."""
    threads: int = Field(default=0, ge=0, le=1024)
    """Threads of the runtime; 0 means the cores this process may use."""
    slowdown: float = Field(default=1.0, ge=1, le=1000)
    """Stretch the time of everything computed here, to stand in for a slower device."""
    idle_ms: float = Field(default=30.0, ge=0, le=10_000)
    """Pause before decoding and before the tail, as a service has between two requests: sleeping
    threads and cold caches cost time. 0 stands for a service that is never idle."""
    seed: int = 0
    """Of the noise and of the order of the pictures."""
    as_json: bool = False
    """Print the profile as one JSON document."""


def run(options: Options) -> int:
    """Measure, write and report."""
    use_one_thread()
    artifact = load_artifact(options.artifact)
    positions = _positions(options, artifact.manifest)
    inputs = gather_inputs(options.images, artifact.manifest, options.limit, options.seed)
    console = Console(stderr=True)
    if inputs.kind == "noise":
        console.print(
            "no --images: measuring on noise, so agreement is known of step-ans alone, and bytes of"
            " the other codecs are a guess",
            highlight=False,
            soft_wrap=True,
        )
    task = Task(
        positions=positions,
        jpeg_qualities=options.jpeg_qualities,
        webp_qualities=options.webp_qualities,
        rounds=options.rounds,
        warm_up=options.warm_up,
        slowdown=options.slowdown,
        idle_s=options.idle_ms / 1e3,
        threads=options.threads,
        seed=options.seed,
    )
    columns = (TextColumn("measuring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=len(inputs) + options.warm_up + options.rounds)
        profile = profile_artifact(artifact, inputs, task, lambda: progress.advance(bar))
    target = options.output or (None if options.as_json else Path("profile.json"))
    if target:
        target.write_text(profile.model_dump_json(indent=1) + "\n")
    if options.as_json:
        print_document(profile.model_dump(mode="json"))
    else:
        _show(profile, target)
    return 0


def _positions(options: Options, manifest: Manifest) -> list[int]:
    inner = manifest.positions[1:-1]
    unknown = [name for name in options.cuts if name not in inner]
    if unknown:
        raise UsageError(
            f"--cuts: no cut {unknown[0]!r} here; there are: {', '.join(inner) or '(none)'}"
        )
    return [manifest.position(name) for name in options.cuts or inner]


def _show(profile: Profile, target: Path | None) -> None:
    table = Table(title=f"{escape(profile.model)} on {profile.machine.processor}", box=SIMPLE_HEAD)
    table.add_column("position", overflow="fold", min_width=8)
    for name in ("MACs", "head ms (p90)", "tail ms (p90)", "weights kB"):
        table.add_column(name, justify="right", no_wrap=True)
    for place in profile.places:
        mark = " *" if place.is_predicted else ""
        table.add_row(
            escape(place.name) + mark,
            f"{place.macs_share:.1%}",
            _ms(place.head),
            _ms(place.tail),
            f"{place.weights_bytes / 1e3:,.0f}",
        )
    Console().print(table)
    Console().print(_codecs(profile))
    notes = [
        f"{profile.rounds} rounds in turn, {profile.threads} threads, {profile.pictures.count}"
        f" inputs ({profile.pictures.kind}); decoding a picture {_ms(profile.picture)} ms"
    ]
    if profile.slowdown > 1:
        notes.append(
            f"slowed down {profile.slowdown:g} times, measured {profile.slowdown_measured:.2f}"
        )
    if profile.prediction:
        seen = profile.prediction
        stars = " (* above)" if any(place.is_predicted for place in profile.places) else ""
        notes.append(
            f"predicting each of {seen.cuts} measured cuts from the others{stars}: heads off by"
            f" {seen.head_median:.1%} (worst {seen.head_worst:.1%}), tails by"
            f" {seen.tail_median:.1%} (worst {seen.tail_worst:.1%})"
        )
    if target:
        notes.append(f"{target} written")
    Console(stderr=True).print("\n".join(notes), highlight=False, markup=False, soft_wrap=True)


def _codecs(profile: Profile) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("codec", overflow="fold", min_width=16)
    for name in ("encode ms", "decode ms", "bytes", "agreement (95 %)"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in profile.candidates:
        if one.codec == "none":
            continue
        seen = one.agreement
        shown = "not measured"
        if seen:
            shown = f"{seen.value:.1f} ({seen.low:.1f}-{seen.high:.1f})"
        elif one.is_lossless:
            shown = "lossless"
        quality = "" if one.quality is None else f" {one.quality:g}"
        table.add_row(
            escape(f"{one.cut} {one.codec}{quality}"),
            f"{1e3 * one.encode.median_s:.2f}",
            f"{1e3 * one.decode.median_s:.2f}",
            f"{one.bytes_mean:,.0f}",
            shown,
        )
    return table


def _ms(timing: Timing) -> str:
    return f"{1e3 * timing.median_s:.2f} ({1e3 * timing.p90_s:.2f})"
