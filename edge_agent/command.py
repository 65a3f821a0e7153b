"""`splitserve agent`: follow a source, answer every input, one JSON line each."""

import asyncio
import logging
import signal
import sys
from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from edge_agent.answer import Answer, write_answer
from edge_agent.head import Head
from edge_agent.loop import Agent
from edge_agent.source import open_source, until
from edge_agent.uplink import open_uplink
from splitserve.artifact import INPUT, OUTPUT, Artifact, load_artifact
from splitserve.codec import StepAnsCodec, use_one_thread
from splitserve.errors import UsageError
from splitserve.logs import configure_logging
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
    cut: str | None = None
    """Where to cut: a name of the artifact, `input` (all in the cloud) or `output` (all here)."""
    codec: str | None = None
    """raw, affine-u8, step-ans, jpeg or webp; by default jpeg at the input, step-ans at a
    calibrated cut and affine-u8 elsewhere."""
    quality: float | None = Field(default=None, gt=0, le=100)
    """Quality of jpeg and webp, 1 to 100; for step-ans the agreement with the unsplit model in
    percent, by default 99."""
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
    cut = _choose_cut(options, artifact)
    in_use = [artifact.manifest.position(cut)]
    chain = open_chain(artifact, RuntimeOptions(threads=options.threads), fused=in_use)
    head = Head(artifact, chain, options.slowdown)
    plan = head.plan(cut, options.codec or default_codec(artifact, cut), options.quality)
    source = open_source(options.source, watch=options.watch)
    uplink = open_uplink(options.transport, options.cloud) if options.cloud else None
    agent = Agent(head, plan, uplink, options.deadline_s, temporal=options.temporal)
    await agent.warm_up()
    logger.info("ready", extra={"cut": plan.cut, "providers": list(chain.providers)})
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
    calibrated = {one.name for one in artifact.manifest.cuts if one.calibration}
    return StepAnsCodec.name if cut in calibrated else "affine-u8"


def _choose_cut(options: Options, artifact: Artifact) -> str:
    cut = options.cut
    if cut is None and options.cloud:
        names = ", ".join(artifact.manifest.positions)
        raise UsageError(f"name where to cut with --cut; this artifact has: {names}")
    cut = cut or OUTPUT
    if cut != OUTPUT and not options.cloud:
        raise UsageError(f"--cut {cut} needs a cloud: add --cloud http://host:port")
    return cut
