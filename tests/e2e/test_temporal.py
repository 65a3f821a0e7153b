"""A stream coded by its own past answers bit for bit what it answers without; only bytes differ."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from calibrated import write_stream

from cloud_service.app import build_app
from cloud_service.scheduler import Scheduler
from cloud_service.service import Service
from cloud_service.tail import Tail
from edge_agent.answer import Answer
from edge_agent.fallback import Breaker
from edge_agent.head import Head
from edge_agent.loop import Agent
from edge_agent.source import read_folder
from edge_agent.uplink import Heard, StreamUplink
from splitserve.artifact import Artifact, load_artifact
from splitserve.codec import References
from splitserve.errors import LinkError
from splitserve.runtime import Chain, RuntimeOptions, open_chain
from splitserve.wire import Limits, Refusal, RefusalCode, Reply, Request, decode_frame

DEADLINE_S = 20.0
FRAMES = 12
QUALITY = 99.9
Outputs = dict[str, bytes]


@pytest.fixture(scope="module")
def artifact(calibrated_artifact: Path) -> Artifact:
    return load_artifact(calibrated_artifact)


@pytest.fixture(scope="module")
def chain(artifact: Artifact) -> Chain:
    return open_chain(artifact, RuntimeOptions(threads=1))


@pytest.fixture(scope="module")
def head(artifact: Artifact, chain: Chain) -> Head:
    return Head(artifact, chain)


@pytest.fixture(scope="module")
def stream(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_stream(tmp_path_factory.mktemp("stream"), artifact, 321, FRAMES)


class MoodyService(Service):
    """A service that refuses or forgets at times, counted over all its requests."""

    def __init__(self, tail: Tail) -> None:
        super().__init__(tail, Scheduler(workers=2, waiting=64), Limits())
        self.refused: set[int] = set()
        self.forgetting: set[int] = set()
        self._count = -1

    async def answer(self, data: bytes, references: References | None = None) -> Reply | Refusal:
        self._count += 1
        if self._count in self.refused:
            request = decode_frame(data, self.limits)
            return Refusal(RefusalCode.OVERLOADED, "full", request.request_id)
        if self._count in self.forgetting:
            references = References()
        return await super().answer(data, references)


class Server:
    """A service on one port, which may be restarted: then it has forgotten everything."""

    def __init__(self, tail: Tail) -> None:
        self._tail = tail
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self._port))
        self._port = listener.getsockname()[1]
        self.service = MoodyService(self._tail)
        config = uvicorn.Config(
            build_app(self.service),
            log_config=None,
            http="httptools",
            ws="websockets-sansio",
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._running = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started:  # noqa: ASYNC110  # uvicorn tells nobody
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self._server.should_exit = True
        await asyncio.wait_for(self._running, 20)
        self.service.scheduler.close()


@pytest.fixture
async def server(artifact: Artifact, chain: Chain) -> AsyncIterator[Server]:
    made = Server(Tail(artifact, chain))
    await made.start()
    yield made
    await made.stop()


class Recording(StreamUplink):
    """The real uplink, which keeps what went over it and may lose some of it."""

    def __init__(self, url: str) -> None:
        super().__init__(url, Limits())
        self.requests: list[Request] = []
        self.outputs: dict[str, bytes] = {}
        self.unsent: set[int] = set()
        self.unheard: set[int] = set()
        self.torn: set[int] = set()

    async def ask(self, frame: bytes, request_id: bytes, timeout_s: float) -> Heard:
        number = len(self.requests)
        request = decode_frame(frame, Limits())
        assert isinstance(request, Request)
        self.requests.append(request)
        if number in self.unsent:
            raise LinkError("lost on the way there")
        if number in self.torn:
            self._drop(LinkError("torn"))
        heard = await super().ask(frame, request_id, timeout_s)
        if number in self.unheard:
            raise LinkError("lost on the way back")
        if isinstance(heard.frame, Reply):
            payloads = [bytes(section.payload) for section in heard.frame.sections]
            self.outputs[request_id.hex()] = b"".join(payloads)
        return heard

    @property
    def is_built(self) -> list[bool]:
        """Whether each request built on an earlier one."""
        return [request.sections[0].payload[1] > 0 for request in self.requests]


def impatient() -> Breaker:
    """A breaker whose pauses are over when it is asked again."""
    now_s = [0.0]

    def clock() -> float:
        now_s[0] += 60
        return now_s[0]

    return Breaker(clock)


@contextlib.asynccontextmanager
async def agent_of(
    head: Head, url: str, *, temporal: bool = True
) -> AsyncIterator[tuple[Agent, Recording]]:
    uplink = Recording(url)
    plan = head.plan(head.artifact.manifest.cuts[0].name, "step-ans", QUALITY)
    agent = Agent(head, plan, uplink, DEADLINE_S, impatient(), temporal=temporal)
    yield agent, uplink
    await agent.close()


async def outputs(
    agent: Agent, uplink: Recording, paths: list[Path], in_flight: int = 1
) -> tuple[Outputs, list[Answer]]:
    """The cloud's outputs for each picture, bit for bit, and the answers."""
    answers: list[Answer] = []

    async def keep(answer: Answer) -> None:
        answers.append(answer)

    await agent.run(read_folder(paths), in_flight, keep)
    assert [answer.error for answer in answers] == [None] * len(paths)
    heard = {
        answer.id: uplink.outputs[answer.request_id]
        for answer in answers
        if answer.answered_by == "cloud"
    }
    return heard, answers


async def plain(head: Head, server: Server, paths: list[Path]) -> tuple[Outputs, list[Answer]]:
    """What comes out without any past."""
    async with agent_of(head, server.url, temporal=False) as (agent, uplink):
        wanted = await outputs(agent, uplink, paths)
        assert not any(uplink.is_built)
    server.service._count = -1
    assert len(wanted[0]) == len(set(wanted[0].values())) == len(paths)
    return wanted


async def test_a_moving_scene_has_the_same_outputs_in_fewer_bytes(
    head: Head, server: Server, stream: list[Path]
) -> None:
    wanted, whole = await plain(head, server, stream)
    async with agent_of(head, server.url) as (agent, uplink):
        got, answers = await outputs(agent, uplink, stream)
        assert got == wanted
        assert uplink.is_built == [False, *[True] * (FRAMES - 1)]
    assert [answer.labels for answer in answers] == [answer.labels for answer in whole]
    sent, sent_whole = (sum(answer.bytes_up for answer in some) for some in (answers, whole))
    assert sent < 0.9 * sent_whole


@pytest.mark.parametrize("how", ["unsent", "unheard", "refused"])
async def test_a_lost_frame_changes_no_other(
    head: Head, server: Server, stream: list[Path], how: str
) -> None:
    wanted, _ = await plain(head, server, stream)
    async with agent_of(head, server.url) as (agent, uplink):
        lost = {3, 4, 8}
        setattr(server.service if how == "refused" else uplink, how, lost)
        got, _ = await outputs(agent, uplink, stream)
        gone = {stream[number].name for number in lost}
        assert got == {name: value for name, value in wanted.items() if name not in gone}
        assert sum(uplink.is_built) > FRAMES / 2
        assert len(uplink.requests) == FRAMES


async def test_a_new_agent_starts_afresh(head: Head, server: Server, stream: list[Path]) -> None:
    wanted, _ = await plain(head, server, stream)
    half = FRAMES // 2
    for paths in (stream[:half], stream[half:]):
        async with agent_of(head, server.url) as (agent, uplink):
            got, _ = await outputs(agent, uplink, paths)
        assert got == {path.name: wanted[path.name] for path in paths}
        assert uplink.is_built == [False, *[True] * (half - 1)]


async def test_a_service_that_restarts_is_sent_a_whole_frame(
    head: Head, server: Server, stream: list[Path]
) -> None:
    wanted, _ = await plain(head, server, stream)
    half = FRAMES // 2
    async with agent_of(head, server.url) as (agent, uplink):
        got, _ = await outputs(agent, uplink, stream[:half])
        await server.stop()
        await server.start()
        async with asyncio.timeout(20):
            while uplink.connection is not None:  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(0.01)
        more, _ = await outputs(agent, uplink, stream[half:])
        assert got | more == wanted
        assert uplink.is_built == [False, *[True] * (half - 1)] * 2


async def test_a_connection_that_is_torn_under_a_frame_costs_one_refusal_at_most(
    head: Head, server: Server, stream: list[Path]
) -> None:
    wanted, _ = await plain(head, server, stream)
    async with agent_of(head, server.url) as (agent, uplink):
        uplink.torn = {5}
        got, answers = await outputs(agent, uplink, stream)
        assert got == wanted
        assert {answer.fallback for answer in answers} == {None}
        # The torn one goes out again on the new connection, which knows nothing: refused, whole.
        assert uplink.requests[5].request_id == uplink.requests[6].request_id
        assert uplink.is_built == [False, *[True] * 5, False, *[True] * (FRAMES - 6)]
        assert not agent._breaker.is_open


async def test_a_service_that_forgets_gets_the_same_input_whole(
    head: Head, server: Server, stream: list[Path]
) -> None:
    wanted, _ = await plain(head, server, stream)
    async with agent_of(head, server.url) as (agent, uplink):
        server.service.forgetting = {2, 6, 7}  # the last: decoded, and not kept
        got, answers = await outputs(agent, uplink, stream)
        assert got == wanted
        assert {answer.fallback for answer in answers} == {None}
        assert len(uplink.requests) > FRAMES
        assert all(sum(answer.stages_s.values()) <= answer.total_s for answer in answers)
        assert not agent._breaker.is_open


async def test_two_agents_at_once_do_not_disturb_each_other(
    artifact: Artifact, head: Head, server: Server, stream: list[Path], tmp_path: Path
) -> None:
    other = write_stream(tmp_path, artifact, 654, FRAMES)
    wanted = {path: (await plain(head, server, paths))[0] for path, paths in
              (("one", stream), ("other", other))}  # fmt: skip
    async with (
        agent_of(head, server.url) as (first, first_uplink),
        agent_of(head, server.url) as (second, second_uplink),
    ):
        (one, _), (two, _) = await asyncio.gather(
            outputs(first, first_uplink, stream), outputs(second, second_uplink, other)
        )
        assert (one, two) == (wanted["one"], wanted["other"])
        for uplink in (first_uplink, second_uplink):
            assert uplink.is_built == [False, *[True] * (FRAMES - 1)]


@pytest.mark.parametrize("in_flight", [2, 5, 12, 24])
async def test_with_many_in_flight_the_outputs_are_the_same_and_nothing_is_refused(
    head: Head, server: Server, stream: list[Path], in_flight: int
) -> None:
    wanted, _ = await plain(head, server, stream)
    async with agent_of(head, server.url) as (agent, uplink):
        for _ in range(3):
            got, _ = await outputs(agent, uplink, stream, in_flight)
            assert got == wanted
        assert len(uplink.requests) == 3 * FRAMES
    assert b'reason="reference"' not in server.service.metrics.text()


def test_the_agent_takes_step_ans_by_itself_and_answers_alike_without_a_past(
    start: Callable[..., Any], calibrated_artifact: Path, stream: list[Path]
) -> None:
    served = start("serve", "--artifact", calibrated_artifact, "--port", 0, "--threads", 1)
    url = served.hear()["url"]
    words = (
        "agent", "--artifact", calibrated_artifact, "--source", stream[0].parent, "--cloud", url,
        "--cut", load_artifact(calibrated_artifact).manifest.cuts[0].name, "--deadline-s", 20,
        "--threads", 1, "--quality", QUALITY,
    )  # fmt: skip
    lines = {}
    for more in ((), ("--no-temporal",), ("--transport", "http")):
        agent = start(*words, *more)
        lines[more] = agent.hear_rest()
        assert agent.end() == 0, agent.log()
        assert {line["plan"]["codec"] for line in lines[more]} == {"step-ans"}
        assert {line["answered_by"] for line in lines[more]} == {"cloud"}
    temporal, whole, http = lines.values()
    assert [line["labels"] for line in temporal] == [line["labels"] for line in whole]
    sizes = [sum(line["bytes_up"] for line in some) for some in (temporal, whole, http)]
    assert sizes[0] < 0.9 * sizes[1]
    assert sizes[1] == sizes[2]
