"""`splitserve agent`: follow a source, answer every input, one JSON line each."""

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from edge_agent.answer import Answer, write_answer
from edge_agent.head import Head, Plan
from edge_agent.loop import Agent
from edge_agent.pilot import Pilot
from edge_agent.source import open_source, until
from edge_agent.uplink import open_uplink
from splitserve.artifact import INPUT, OUTPUT, Artifact, load_artifact
from splitserve.codec import StepAnsCodec, use_one_thread
from splitserve.errors import UsageError
from splitserve.exits import AGREEMENT, ExitHead, Gate, positions_with_exit
from splitserve.logs import configure_logging
from splitserve.plans import PlanFile, read_plans
from splitserve.runtime import RuntimeOptions, open_chain
from splitserve.settings import Settings

logger = logging.getLogger(__name__)


class Options(Settings):
    """Run the edge agent: head here, tail in the cloud, one JSON line per answer.

    When the cloud does not answer in time, the rest of the model runs here and the answer says so.
    """

    model_config = SettingsConfigDict(
        cli_prog_name="splitserve agent", env_prefix="SPLITSERVE_AGENT_"
    )

    artifact: Path
    """Artifact folder, the same as the cloud's."""
    source: str
    """Folder of pictures, one picture, or - for paths on standard input."""
    cloud: str | None = None
    """The service, http(s)://host:port; without it every answer is made here."""
    plan: Path | None = None
    """File of `splitserve plan`: choose for each request, by the link and the load of the moment,
    among the plans in it; instead of --cut, --codec and --quality."""
    cut: str | None = None
    """Where to cut: a name of the artifact, `input` (all in the cloud) or `output` (all here)."""
    codec: str | None = None
    """raw, affine-u8, step-ans, jpeg or webp; by default jpeg at the input, step-ans at a
    calibrated cut and affine-u8 elsewhere."""
    quality: float | None = Field(default=None, gt=0, le=100)
    """Quality of jpeg and webp, 1 to 100; for step-ans the agreement with the unsplit model in
    percent, by default 99."""
    upload_budget: float | None = Field(default=None, ge=0, le=100)
    """Percent of the inputs to upload: the cut's exit answers the others here, those it is the
    surest of. By default no exit is asked; with --plan the file says it."""
    exit_agreement: float = Field(default=AGREEMENT, ge=0, le=100)
    """Percent of an exit's answers that must be the whole model's, by its calibration; comes before
    the budget. 0 asks for nothing."""
    temporal: bool = True
    """Code the features of a stream by those before them where that is shorter (step-ans); the
    answers are the same."""
    watch: bool = False
    """Keep following the folder until SIGTERM."""
    deadline_s: float = Field(default=2.0, gt=0, le=3600)
    """Seconds from taking an input up to its answer."""
    in_flight: int = Field(default=1, ge=1, le=256)
    """Inputs under way at once; 2 or more overlap the head with the link."""
    transport: str = "stream"
    """stream (one WebSocket) or http (one request each)."""
    threads: int = Field(default=0, ge=0, le=1024)
    """Threads of the head; 0 means the cores this process may use."""
    slowdown: float = Field(default=1.0, ge=1, le=1000)
    """Stretch the time of everything computed here, to stand in for a slower device."""
    log_level: str = Field(default="WARNING", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    """Lowest level logged."""
    log_json: bool = True
    """One JSON object a log line, or plain text."""


def run(options: Options) -> int:
    """Answer until the source ends or a signal comes; 1 when an input got no answer."""
    configure_logging(options.log_level, as_json=options.log_json)
    use_one_thread()
    return asyncio.run(_run(options))


async def _run(options: Options) -> int:
    artifact = load_artifact(options.artifact)
    plans = _read_plans(options, artifact)
    cuts = [one.cut for one in plans.options] if plans else [_choose_cut(options, artifact)]
    in_use = sorted({artifact.manifest.position(cut) for cut in cuts})
    chain = open_chain(artifact, RuntimeOptions(threads=options.threads), fused=in_use)
    exits = open_exits(options, artifact, in_use, plans)
    head = Head(artifact, chain, options.slowdown, exits)
    plan: Plan | Pilot
    if plans is None:
        codec = options.codec or default_codec(artifact, cuts[0])
        plan = head.plan(cuts[0], codec, options.quality)
    else:
        plan = make_pilot(head, plans, options.deadline_s)
    source = open_source(options.source, watch=options.watch)
    uplink = open_uplink(options.transport, options.cloud) if options.cloud else None
    agent = Agent(head, plan, uplink, options.deadline_s, temporal=options.temporal)
    await agent.warm_up()
    logger.info("ready", extra={"cuts": cuts, "providers": list(chain.providers)})
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    failures = 0

    writing = asyncio.Lock()

    async def sink(answer: Answer) -> None:
        nonlocal failures
        failures += answer.answered_by == "nobody"
        async with writing:  # a reader that pauses holds up the answers, not the event loop
            await asyncio.to_thread(write_answer, answer, sys.stdout)

    try:
        await agent.run(until(source, stop), options.in_flight, sink)
    finally:
        await agent.close()
    return 1 if failures else 0


def default_codec(artifact: Artifact, cut: str) -> str:
    """Name the codec for a cut when the operator names none."""
    if cut == INPUT:
        return "jpeg"
    rated = {
        one.name for one in artifact.manifest.cuts if one.calibration and one.calibration.rates
    }
    return StepAnsCodec.name if cut in rated else "affine-u8"


def make_pilot(head: Head, plans: PlanFile, deadline_s: float) -> Pilot:
    """Make every plan of a file ready to run.

    Raises:
        UsageError: a cut, codec or quality that the artifact does not have.
    """
    made = [
        head.plan(one.cut, "raw" if one.is_local else one.codec, one.quality)
        for one in plans.options
    ]
    return Pilot(plans.options, made, deadline_s, plans.expected)


def open_exits(
    options: Options, artifact: Artifact, in_use: Sequence[int], plans: PlanFile | None
) -> dict[int, Gate]:
    """Load the exits of the cuts in use, where there is a budget of uploads.

    Those that do not keep the agreement are left out of a file's plans, which may hold others.

    Raises:
        UsageError: the one cut has no exit, or none that keeps the agreement.
        IntegrityError: an exit that differs from its hash.
    """
    budget = options.upload_budget if plans is None else plans.upload_budget
    if budget is None:
        return {}
    runtime = RuntimeOptions(threads=1)  # a few thousand multiply-adds
    found = positions_with_exit(artifact.manifest, in_use) if plans else in_use
    gates = {}
    for position in found:
        head = ExitHead(artifact, position, runtime)
        try:
            gates[position] = Gate(head, budget, options.exit_agreement)
        except UsageError as error:
            if plans is None:
                raise
            logger.warning("an exit is left out", extra={"why": str(error)})
    return gates


def _read_plans(options: Options, artifact: Artifact) -> PlanFile | None:
    if options.plan is None:
        return None
    fixed = ("cut", "codec", "quality", "upload_budget")
    given = [name.replace("_", "-") for name in fixed if getattr(options, name) is not None]
    if given:
        raise UsageError(f"--plan chooses by itself; leave out --{given[0]}, or --plan")
    if not options.cloud:
        raise UsageError("--plan needs a cloud: add --cloud http://host:port")
    plans = read_plans(options.plan)
    if plans.artifact_id != artifact.id.hex():
        raise UsageError(
            f"{options.plan} was made for artifact {plans.artifact_id}, {artifact.root} is"
            f" {artifact.id.hex()}; make it again with: splitserve plan {artifact.root}"
        )
    return plans


def _choose_cut(options: Options, artifact: Artifact) -> str:
    cut = options.cut
    if cut is None and options.cloud:
        names = ", ".join(artifact.manifest.positions)
        raise UsageError(
            f"name where to cut with --cut, or give --plan FILE; this artifact has: {names}"
        )
    cut = cut or OUTPUT
    if cut != OUTPUT and not options.cloud:
        raise UsageError(f"--cut {cut} needs a cloud: add --cloud http://host:port")
    return cut
