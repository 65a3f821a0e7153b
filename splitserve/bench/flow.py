"""Requests at a fixed rate to a running agent, answered or not: an open loop."""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitserve.bench.measure import LOCAL
from splitserve.bench.process import Heard, Process
from splitserve.errors import MeasurementError

ANSWER_S = 60.0
WARM_UP = 5
REMOTE = ("cloud_decode", "tail")


@dataclass(frozen=True, slots=True)
class Asked:
    """One request.

    Args:
        due_s: when it was due, from the start of the flow.
        latency_s: from then until its answer was heard; None where no answer came.
        plan: name of the plan that was tried, where the agent chooses it; else empty.
        answered_by: `cloud`, `edge`, or `nobody`.
        fallback: why the edge finished what the cloud should have.
        busy_s: seconds that the device took for it.
        cloud_s: seconds that the service took for it, without its queue.
    """

    due_s: float
    latency_s: float | None
    plan: str = ""
    answered_by: str = "nobody"
    fallback: str | None = None
    busy_s: float = 0.0
    cloud_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Flow:
    """What an agent was asked.

    Args:
        asked: the requests, in the order in which they were due.
        started_s: when the first was due (`time.perf_counter`).
        latest_s: by how much the latest of them was asked after it was due: the fault of the
            machine that measures.
    """

    asked: tuple[Asked, ...]
    started_s: float
    latest_s: float


def agent_words(artifact: Path, url: str, slowdown: float, deadline_s: float) -> tuple[str, ...]:
    """The command of an agent that is fed through its standard input, but for its plan."""
    return (
        "agent", "--artifact", str(artifact), "--source", "-", "--cloud", url,
        "--slowdown", str(slowdown), "--deadline-s", str(deadline_s), "--log-level", "INFO",
    )  # fmt: skip


def warm_up(agent: Process, pictures: Sequence[Path]) -> None:
    """Ask for a few answers, each after the one before.

    Raises:
        MeasurementError: an answer did not come, or the process has died.
    """
    for path in pictures[:WARM_UP]:
        agent.say(str(path))
        agent.hear(ANSWER_S)


def ask_steadily(
    agent: Process,
    pictures: Sequence[Path],
    count: int,
    rate_hz: float,
    tick: Callable[[float], None],
) -> Flow:
    """Hand in a picture whenever one is due, and collect the answers.

    Args:
        agent: reads paths from its standard input, and has answered all before.
        pictures: taken in turn.
        count: of requests.
        rate_hz: requests a second.
        tick: called at every request with the seconds since the last.

    Raises:
        MeasurementError: the agent has died.
    """
    started, latest_s = time.perf_counter(), 0.0
    paths = [str(pictures[number % len(pictures)]) for number in range(count)]
    for number, path in enumerate(paths):
        due_s = started + number / rate_hz
        time.sleep(max(0.0, due_s - time.perf_counter()))
        latest_s = max(latest_s, time.perf_counter() - due_s)
        agent.say(path)
        tick(1 / rate_hz)
    time.sleep(max(0.0, started + count / rate_hz - time.perf_counter()))
    heard = _collect(agent, count)
    return Flow(tuple(_pair(paths, heard, started, rate_hz)), started, latest_s)


def _collect(agent: Process, count: int) -> list[Heard]:
    """Listen until all answers are there, or none has come for a long time."""
    heard: list[Heard] = []
    while len(heard) < count and (one := agent.listen(ANSWER_S)) is not None:
        heard.append(one)
    return heard


def _pair(
    paths: Sequence[str], heard: Sequence[Heard], started: float, rate_hz: float
) -> list[Asked]:
    """Give each request its answer: the first one for its path that is not taken."""
    waiting: dict[str, deque[Heard]] = defaultdict(deque)
    for one in heard:
        if one.line["id"] not in paths:
            raise MeasurementError(f"an answer to {one.line['id']!r}, which nobody asked")
        waiting[one.line["id"]].append(one)
    asked = []
    for number, path in enumerate(paths):
        due_s = number / rate_hz
        one_s = waiting[path].popleft() if waiting[path] else None
        asked.append(
            Asked(due_s, None)
            if one_s is None
            else _asked(due_s, one_s.at_s - started - due_s, one_s.line)
        )
    return asked


def _asked(due_s: float, latency_s: float, line: dict[str, Any]) -> Asked:
    if line["answered_by"] == "nobody":
        return Asked(due_s, None)
    stages_s = line["stages_s"]
    return Asked(
        due_s=due_s,
        latency_s=latency_s,
        plan=line["plan"].get("name", ""),
        answered_by=line["answered_by"],
        fallback=line["fallback"],
        busy_s=sum(stages_s.get(stage, 0.0) for stage in LOCAL),
        cloud_s=sum(stages_s.get(stage, 0.0) for stage in REMOTE),
    )
