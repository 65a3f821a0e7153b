"""`splitserve bench outage`: what a dead, silent or slow cloud costs the adaptive agent."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from splitserve.bench.flow import Flow, agent_words, ask_steadily, warm_up
from splitserve.bench.link import Link, LinkSettings, self_test
from splitserve.bench.measure import median
from splitserve.bench.process import Process, running
from splitserve.errors import MeasurementError
from splitserve.output import print_document
from splitserve.picture import list_pictures
from splitserve.plans import PlanFile, read_plans
from splitserve.settings import Settings

EXIT_MISSED = 3
READY_S = 60.0
TURN_S = 0.01  # in which a slowed service runs once and is stopped once

Tick = Callable[[float], None]


class Options(Settings):
    """Disturb the cloud under the adaptive agent: kill and restart it, silence the link, slow it.

    Requests are due at a fixed rate before, in and after the disturbance. Exit status 3 says that
    an answer was lost, that the 99th percentile of what was due in the disturbance is over deadline
    plus edge-only time, or that the cloud did not answer again.
    """

    model_config = SettingsConfigDict(
        cli_prog_name="splitserve bench outage", env_prefix="SPLITSERVE_BENCH_OUTAGE_"
    )

    artifact: CliPositionalArg[Path]
    """Artifact folder."""
    plan: Path
    """File of `splitserve plan`."""
    images: Path
    """Folder of pictures."""
    slowdown: float = Field(default=12.0, ge=1, le=1000)
    """How many times slower the edge computes than this machine."""
    rate: float = Field(default=5.0, gt=0, le=1000)
    """Requests a second."""
    deadline_s: float = Field(default=2.0, gt=0, le=3600)
    """Seconds from taking an input up to its answer."""
    link_mbps: float = Field(default=20.0, gt=0, le=10_000)
    """Rate of the link in either direction, Mbit/s."""
    delay_ms: float = Field(default=10.0, ge=0, le=5000)
    """One-way delay of the link, ms."""
    lead_s: float = Field(default=10.0, gt=0, le=3600)
    """Seconds before the disturbance."""
    outage_s: float = Field(default=10.0, gt=0, le=3600)
    """Seconds of the disturbance."""
    rest_s: float = Field(default=20.0, gt=0, le=3600)
    """Seconds after it."""
    crawl: float = Field(default=5.0, ge=1, le=100)
    """How many times slower the slowed cloud is."""
    as_json: bool = False
    """Print one JSON document."""


class Cloud:
    """A service behind a link, and what can happen to them.

    Args:
        artifact: what it serves.
        stack: ends whatever is started.
        settings: of the link.
        crawl: how many times slower `slow` makes the service.
    """

    def __init__(
        self, artifact: Path, stack: ExitStack, settings: LinkSettings, crawl: float
    ) -> None:
        self._artifact = artifact
        self._stack = stack
        self._crawl = crawl
        self._port = 0
        self._process = self._start()
        self.link = stack.enter_context(Link(("127.0.0.1", self._port), settings))
        self.url = f"http://{self.link.address[0]}:{self.link.address[1]}"

    def _start(self) -> Process:
        words = ("serve", "--artifact", str(self._artifact), "--log-level", "ERROR")
        process = self._stack.enter_context(running(*words, "--port", str(self._port)))
        self._port = int(process.hear(READY_S)["url"].rpartition(":")[2])
        return process

    @contextlib.contextmanager
    def dead(self) -> Iterator[None]:
        """Killed as by a power cut; started again on the same port at the end."""
        self._process.send(signal.SIGKILL)
        yield
        self._process = self._start()

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Nothing passes the link, and no connection breaks."""
        rate_bps = self.link.settings.rate_bps
        self.link.set_rate(0)
        yield
        self.link.set_rate(rate_bps)

    @contextlib.contextmanager
    def slow(self) -> Iterator[None]:
        """The service runs for a part of the time only, stopped and continued in turn."""
        stop = threading.Event()
        slowing = threading.Thread(target=self._take_turns, args=(stop,), daemon=True)
        slowing.start()
        yield
        stop.set()
        slowing.join()

    def _take_turns(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self._process.send(signal.SIGSTOP)
            time.sleep(TURN_S * (1 - 1 / self._crawl))
            self._process.send(signal.SIGCONT)
            time.sleep(TURN_S / self._crawl)


CASES: dict[str, Callable[[Cloud], contextlib.AbstractContextManager[None]]] = {
    "killed": Cloud.dead,
    "silent": Cloud.silent,
    "slow": Cloud.slow,
}


@dataclass(frozen=True, slots=True)
class Disturbed:
    """A flow, and when the disturbance began and was over, seconds from the flow's start."""

    flow: Flow
    begun_s: float
    over_s: float


def run(options: Options) -> int:
    """Disturb and print."""
    console = Console(stderr=True)
    plans = read_plans(options.plan)
    pictures = list_pictures(options.images)
    with console.status("testing the emulated link"):
        self_test(link_settings(options))
    rows = []
    with Progress(console=console, transient=True) as progress:
        for case in CASES:
            total_s = options.lead_s + options.outage_s + options.rest_s
            task = progress.add_task(f"cloud {case}", total=total_s)
            seen = disturb(options, case, pictures, partial(progress.advance, task))
            rows.append(figures(case, seen, limit_s(plans, options)))
    if options.as_json:
        facts = options.model_dump(mode="json", exclude={"as_json", "artifact", "images", "plan"})
        print_document({"artifact_id": plans.artifact_id, **facts, "cases": rows})
    else:
        _print(rows, Console())
    return 0 if all(row["is_met"] for row in rows) else EXIT_MISSED


def link_settings(options: Options) -> LinkSettings:
    """Of the link while nothing disturbs it."""
    return LinkSettings(options.link_mbps * 1e6, options.delay_ms / 1e3)


def limit_s(plans: PlanFile, options: Options) -> float:
    """Deadline plus the planned time of edge-only."""
    return options.deadline_s + min(one.edge_s for one in plans.options if one.is_local)


def disturb(options: Options, case: str, pictures: list[Path], tick: Tick) -> Disturbed:
    """Run one case with an agent and a service of its own.

    Raises:
        MeasurementError: the agent has died, or the service did not come back.
    """
    times: list[float] = []
    with ExitStack() as stack:
        cloud = Cloud(options.artifact, stack, link_settings(options), options.crawl)
        words = agent_words(options.artifact, cloud.url, options.slowdown, options.deadline_s)
        agent = stack.enter_context(running(*words, "--plan", str(options.plan)))
        warm_up(agent, pictures)

        def script() -> None:
            time.sleep(options.lead_s)
            times.append(time.perf_counter())
            with CASES[case](cloud):
                time.sleep(options.outage_s)
            times.append(time.perf_counter())

        acting = threading.Thread(target=script)
        acting.start()
        count = round((options.lead_s + options.outage_s + options.rest_s) * options.rate)
        flow = ask_steadily(agent, pictures, count, options.rate, tick)
        acting.join()
        agent.finish()
    if len(times) < 2:
        raise MeasurementError(f"cloud {case}: it did not come back")
    return Disturbed(flow, times[0] - flow.started_s, times[1] - flow.started_s)


def figures(case: str, seen: Disturbed, limit_s: float) -> dict[str, Any]:
    """What one case cost.

    Args:
        case: its name.
        seen: what happened.
        limit_s: highest 99th percentile allowed.
    """
    asked = seen.flow.asked
    within = [one for one in asked if seen.begun_s <= one.due_s < seen.over_s]
    before = [one for one in asked if one.due_s < seen.begun_s]
    got = [one.latency_s for one in within if one.latency_s is not None]
    by_cloud = [
        one.due_s + one.latency_s - seen.over_s
        for one in asked
        if one.answered_by == "cloud" and one.latency_s is not None
    ]
    again = [after_s for after_s in by_cloud if after_s >= 0]
    lost = sum(one.latency_s is None for one in asked)
    p99_s = float(np.percentile(got, 99)) if got else None
    slower = [one.cloud_s for one in within if one.answered_by == "cloud"]
    usual = [one.cloud_s for one in before if one.answered_by == "cloud"]
    return {
        "case": case,
        "requests": len(asked),
        "lost": lost,
        "disturbed": len(within),
        "disturbed_s": seen.over_s - seen.begun_s,
        "by_the_cloud": len(slower),
        "p50_before_s": median([one.latency_s for one in before if one.latency_s is not None]),
        "p50_s": median(got) if got else None,
        "p99_s": p99_s,
        "limit_s": limit_s,
        "cloud_slower": median(slower) / median(usual) if slower and usual else None,
        "answers_again_s": min(again) if again else None,
        "is_met": lost == 0 and p99_s is not None and p99_s <= limit_s and bool(again),
    }


def _print(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(box=SIMPLE_HEAD, title="requests that were due while the cloud was disturbed, ms")
    table.add_column("cloud", no_wrap=True)
    for name in ("lost", "before", "p50", "p99", "limit", "by cloud", "slower", "again after"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["case"],
            str(row["lost"]),
            *(_ms(row[key]) for key in ("p50_before_s", "p50_s", "p99_s", "limit_s")),
            f"{row['by_the_cloud']}/{row['disturbed']}",
            "-" if row["cloud_slower"] is None else f"{row['cloud_slower']:.1f} x",
            "never" if row["answers_again_s"] is None else f"{row['answers_again_s']:.2f} s",
            style="" if row["is_met"] else "bold red",
        )
    console.print(table)
    console.print(
        f"lost is of all {rows[0]['requests']} requests; before is the median ahead of the"
        " disturbance; the limit of p99 is the deadline plus edge-only; again after is from when"
        " the cloud could answer to its first answer.",
        highlight=False,
    )


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:,.0f}"
