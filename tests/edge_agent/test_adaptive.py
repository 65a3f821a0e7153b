"""An agent that chooses its plans, against a cloud in the same process."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from edge_agent.answer import Answer
from edge_agent.fallback import Breaker
from edge_agent.head import Head
from edge_agent.loop import Agent
from edge_agent.pilot import Pilot
from edge_agent.source import Item
from splitserve.artifact import INPUT, OUTPUT, Artifact
from splitserve.errors import LinkError
from splitserve.plans import Link, PlanOption
from splitserve.runtime import Chain
from splitserve.tensors import Array, Tensors
from splitserve.wire import Refusal, RefusalCode, Reply, Request

DEADLINE_S = 5.0
SLOW_S = 0.08
FAST = Link(uplink_bps=100e6, rtt_s=0.001)
SLOW = Link(uplink_bps=1e4, rtt_s=0.001)


def option(name: str, cut: str, codec: str, bytes_up: float, edge_s: float) -> PlanOption:
    return PlanOption(
        name=name, cut=cut, codec=codec, bytes_up=bytes_up, edge_s=edge_s, edge_p90_s=edge_s,
        cloud_s=0.005, cloud_p90_s=0.005,
    )  # fmt: skip


class SlowChain(Chain):
    """A device on which the end of the model is slow."""

    def __init__(self, chain: Chain) -> None:
        self._fast = chain

    def __len__(self) -> int:
        return len(self._fast)

    def run(self, tensors: Tensors, start: int, stop: int) -> Mapping[str, Array]:
        if stop == len(self) > start:
            time.sleep(SLOW_S)
        return self._fast.run(tensors, start, stop)


@pytest.fixture
def head(artifact: Artifact, chain: Chain) -> Head:
    return Head(artifact, SlowChain(chain))


@pytest.fixture
def options(artifact: Artifact) -> list[PlanOption]:
    """Edge-only is the slowest on a good link."""
    cut = artifact.manifest.cuts[0].name
    return [
        option("edge", OUTPUT, "none", 0, SLOW_S + 0.002),
        option("split", cut, "affine-u8", 2000, 0.002),
        option("upload", INPUT, "jpeg", 1500, 0.002),
    ]


@pytest.fixture
def make(head: Head, cloud: Any, options: list[PlanOption]) -> Callable[..., Agent]:
    def agent(link: Link, breaker: Breaker | None = None) -> Agent:
        plans = [head.plan(one.cut, "raw" if one.is_local else one.codec) for one in options]
        return Agent(head, Pilot(options, plans, DEADLINE_S, link), cloud, DEADLINE_S, breaker)

    return agent


async def answers_of(agent: Agent, album: Path, count: int) -> list[Answer]:
    """Answer some inputs, giving probes time to end in between."""
    answers = []
    for number in range(count):
        answers.append(await agent.answer(Item(album / f"p{number % 6}.png")))
        await asyncio.gather(*agent._background)
    return answers


async def test_the_best_plan_on_the_expected_link_answers(
    make: Callable[..., Agent], cloud: Any, album: Path
) -> None:
    agent = make(FAST)
    await agent.warm_up()
    answers = await answers_of(agent, album, 3)
    assert {answer.answered_by for answer in answers} == {"cloud"}
    assert {answer.plan["cut"] for answer in answers} <= {
        "input",
        cloud.artifact.manifest.cuts[0].name,
    }
    await agent.close()


async def test_every_plan_is_warm_before_the_first_input(
    make: Callable[..., Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make(FAST)
    await agent.warm_up()
    assert len(agent._finish_s) == len(agent._head.artifact.manifest.positions)
    assert agent._finish_s[0] > agent._finish_s[-1] == 0.0
    await agent.close()


async def test_on_edge_only_a_probe_goes_up_after_the_answer_and_finds_the_link(
    make: Callable[..., Agent], cloud: Any, album: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    agent = make(SLOW)
    await agent.warm_up()
    answers = await answers_of(agent, album, 6)
    assert [answer.answered_by for answer in answers] == ["edge"] + ["cloud"] * 5
    probed = answers[0].plan["probe"]
    assert answers[0].plan == {"cut": OUTPUT, "codec": "none", "name": "edge", "probe": probed}
    assert {answer.fallback for answer in answers} == {None}
    assert len(cloud.requests) == 6
    (record,) = [record for record in caplog.records if record.message == "plan changed"]
    assert (record.before, record.reason) == ("edge", "probe")
    assert record.uplink_bps > 1e5
    await agent.close()
    (summary,) = [record for record in caplog.records if record.message == "plans in total"]
    assert (summary.switches, summary.probes, summary.replies) == (1, 1, 6)
    assert sum(summary.requests.values()) == 6


async def test_the_answer_does_not_wait_for_a_probe(
    make: Callable[..., Agent], cloud: Any, album: Path
) -> None:
    hold = asyncio.Event()

    async def held(request: Request) -> Reply:
        await hold.wait()
        return await cloud.finish(request)

    cloud.answering = held
    agent = make(SLOW)
    answers = [await agent.answer(Item(album / "p0.png")) for _ in range(6)]
    assert {answer.answered_by for answer in answers} == {"edge"}
    assert sum("probe" in answer.plan for answer in answers) == 1  # one at a time
    assert len(cloud.requests) == 1
    hold.set()
    await asyncio.gather(*agent._background)
    assert (await agent.answer(Item(album / "p0.png"))).answered_by == "edge"  # 2 s, as it seemed
    await agent.close()


async def test_a_broken_link_is_left_at_once_and_probed_behind_answers(
    make: Callable[..., Agent], cloud: Any, album: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    now_s = 100.0
    agent = make(FAST, Breaker(lambda: now_s))

    async def fail(request: Request) -> Reply:
        raise LinkError("the cable is cut")

    cloud.answering = fail
    (first,) = await answers_of(agent, album, 1)
    assert (first.answered_by, first.fallback) == ("edge", "the cable is cut")
    away = await answers_of(agent, album, 3)
    assert {answer.plan["cut"] for answer in away} == {OUTPUT}
    assert {answer.fallback for answer in away} == {None}
    assert len(cloud.requests) == 1
    now_s += 1.0
    (probed,) = await answers_of(agent, album, 1)
    assert "probe" in probed.plan
    assert len(cloud.requests) == 2
    cloud.answering = cloud.finish
    now_s += 3.0
    (probed,) = await answers_of(agent, album, 1)
    assert (probed.answered_by, "probe" in probed.plan) == ("edge", True)
    back = await answers_of(agent, album, 3)
    assert {answer.answered_by for answer in back} == {"cloud"}
    reasons = [record.reason for record in caplog.records if record.message == "plan changed"]
    assert reasons == ["away", "recovery"]
    await agent.close()


async def test_a_refusal_that_asks_for_a_pause_gets_it(
    make: Callable[..., Agent], cloud: Any, album: Path
) -> None:
    now_s = 100.0
    agent = make(FAST, Breaker(lambda: now_s))

    async def refuse(request: Request) -> Refusal:
        return Refusal(RefusalCode.OVERLOADED, "full", request.request_id, retry_after_s=20.0)

    cloud.answering = refuse
    await answers_of(agent, album, 1)
    now_s += 19.0
    await answers_of(agent, album, 4)
    assert len(cloud.requests) == 1
    await agent.close()


async def test_a_reply_that_is_overdue_is_not_waited_for_and_still_tells_of_the_link(
    make: Callable[..., Agent], cloud: Any, album: Path
) -> None:
    agent = make(FAST)
    await agent.warm_up()
    await answers_of(agent, album, 3)
    hold = asyncio.Event()

    async def held(request: Request) -> Reply:
        await hold.wait()
        return await cloud.finish(request)

    cloud.answering = held
    late = await agent.answer(Item(album / "p0.png"))
    assert late.answered_by == "edge"
    assert "overdue" in late.fallback
    assert late.total_s < 1.0
    meanwhile = await agent.answer(Item(album / "p1.png"))
    assert (meanwhile.plan["cut"], meanwhile.fallback) == (OUTPUT, None)
    assert not agent._breaker.is_open
    cloud.answering = cloud.finish
    hold.set()
    await asyncio.gather(*agent._background)
    assert agent._pilot.counts.overdue == 1
    assert agent._pilot.counts.replies == 4
    await answers_of(agent, album, 4)
    assert (await agent.answer(Item(album / "p2.png"))).answered_by == "cloud"
    await agent.close()


async def test_a_reply_over_a_new_connection_tells_nothing_of_the_link(
    make: Callable[..., Agent], cloud: Any, album: Path
) -> None:
    agent = make(FAST)
    before = agent._pilot.controller.link.transfer_s(2000)
    cloud.connection = None

    async def connect(request: Request) -> Reply:
        cloud.connection = 2
        await asyncio.sleep(0.02)
        return await cloud.finish(request)

    cloud.answering = connect
    ask = cloud.ask

    async def ask_late(frame: bytes, request_id: bytes, timeout_s: float) -> Any:
        heard = await ask(frame, request_id, timeout_s)
        return heard._replace(connection=cloud.connection)

    cloud.ask = ask_late
    await answers_of(agent, album, 1)
    assert agent._pilot.controller.link.transfer_s(2000) == before
    await answers_of(agent, album, 2)
    assert agent._pilot.controller.link.transfer_s(2000) != before
    await agent.close()


@pytest.mark.parametrize("link", [FAST, SLOW])
async def test_what_cannot_be_read_gets_one_answer_and_blocks_no_probe(
    make: Callable[..., Agent], album: Path, link: Link
) -> None:
    agent = make(link)
    (album / "p1.png").write_bytes(b"no picture")
    (album / "p3.png").unlink()
    answers = await answers_of(agent, album, 12)
    assert [answer.answered_by == "nobody" for answer in answers] == [
        number % 6 in (1, 3) for number in range(12)
    ]
    assert answers[-1].answered_by == "cloud"
    await agent.close()


async def test_many_in_flight_get_one_answer_each_while_the_cloud_comes_and_goes(
    make: Callable[..., Agent], cloud: Any, album: Path
) -> None:
    turn = 0

    async def moody(request: Request) -> Reply:
        nonlocal turn
        turn += 1
        if turn % 5 == 3:
            raise LinkError("gone")
        await asyncio.sleep(0.02)
        return await cloud.finish(request)

    async def source() -> Any:
        for number in range(60):
            yield Item(album / f"p{number % 6}.png", f"{number}")

    cloud.answering = moody
    agent, answers = make(FAST), []

    async def keep(answer: Answer) -> None:
        answers.append(answer)

    await agent.run(source(), 4, keep)
    await agent.close()
    assert sorted(int(answer.id) for answer in answers) == list(range(60))
    assert {answer.answered_by for answer in answers} <= {"cloud", "edge"}
    assert all(answer.labels for answer in answers)
