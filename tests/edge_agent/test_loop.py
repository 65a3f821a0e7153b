"""Each input gets one answer: from the cloud when it is there, from the edge when it is not."""

import asyncio
import dataclasses
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edge_agent.answer import Answer
from edge_agent.fallback import Breaker
from edge_agent.head import Head, Plan
from edge_agent.loop import Agent, Sink
from edge_agent.source import Item, read_folder
from edge_agent.uplink import Uplink
from splitserve.artifact import INPUT, OUTPUT, Artifact
from splitserve.codec import Codec, RawCodec, build_codec
from splitserve.errors import CodecError, LinkError
from splitserve.runtime import Chain
from splitserve.tensors import Array
from splitserve.wire import Refusal, RefusalCode, Reply, Request, Section

DEADLINE_S = 5.0


def plan_with(head: Head, cut: str, codec: Codec) -> Plan:
    """A plan whose codec is made by hand."""
    return dataclasses.replace(head.plan(cut, "raw"), codec=codec)


@pytest.fixture
async def agent(artifact: Artifact, head: Head, cloud: Uplink) -> AsyncIterator[Agent]:
    made = Agent(head, plan_with(head, middle(artifact), RawCodec(exact=True)), cloud, DEADLINE_S)
    yield made
    await made.close()


def middle(artifact: Artifact) -> str:
    """Name of the first cut."""
    return artifact.manifest.cuts[0].name


async def answer_all(agent: Agent, paths: list[Path], in_flight: int = 1) -> list[Answer]:
    answers: list[Answer] = []
    await agent.run(read_folder(paths), in_flight, keeping(answers))
    return answers


def keeping(answers: list[Answer]) -> Sink:
    """A sink that keeps what it gets."""

    async def keep(answer: Answer) -> None:
        answers.append(answer)

    return keep


def pictures_of(album: Path) -> list[Path]:
    return sorted(album.iterdir())


async def test_the_clouds_answer_equals_the_edges_at_every_cut(
    artifact: Artifact, head: Head, agent: Agent, album: Path
) -> None:
    item = Item(album / "p0.png")
    agent.plan = head.plan(OUTPUT, "raw")
    local = await agent.answer(item)
    assert (local.answered_by, local.fallback, local.bytes_up) == ("edge", None, 0)
    assert len(local.labels) == 5
    for name in artifact.manifest.positions[:-1]:
        agent.plan = plan_with(head, name, RawCodec(exact=True))
        answer = await agent.answer(item)
        assert (answer.answered_by, answer.fallback, answer.error) == ("cloud", None, None)
        assert answer.labels == local.labels
        assert answer.plan == {"cut": name, "codec": "raw"}


async def test_an_answer_says_what_it_cost(
    artifact: Artifact, agent: Agent, cloud: Uplink, album: Path
) -> None:
    async def take_as_long_as_claimed(request: Request) -> Reply:
        await asyncio.sleep(0.01)
        return await cloud.finish(request)

    cloud.answering = take_as_long_as_claimed
    answer = await agent.answer(Item(album / "p0.png"))
    assert (answer.id, answer.bytes_down) == ("p0.png", 1234)
    assert answer.request_id == cloud.requests[0].request_id.hex()
    assert answer.bytes_up > sum(len(section.payload) for section in cloud.requests[0].sections)
    assert list(answer.stages_s) == [
        "picture", "normalise", "head", "encode", "network", "queue", "cloud_decode", "tail",
    ]  # fmt: skip
    assert answer.stages_s["tail"] == pytest.approx(0.003)
    assert sum(answer.stages_s.values()) <= answer.total_s < DEADLINE_S


async def test_the_request_carries_the_deadline_that_is_left(
    agent: Agent, cloud: Uplink, album: Path
) -> None:
    await agent.answer(Item(album / "p0.png"))
    deadline_s = cloud.requests[0].deadline_s
    assert deadline_s is not None
    assert 0 < deadline_s < DEADLINE_S
    assert deadline_s == pytest.approx(cloud.timeouts_s[0], abs=0.001)


async def test_a_jpeg_of_the_input_is_finished_in_the_cloud(
    head: Head, agent: Agent, cloud: Uplink, album: Path
) -> None:
    agent.plan = head.plan(INPUT, "jpeg", 95)
    answer = await agent.answer(Item(album / "p0.png"))
    assert answer.answered_by == "cloud"
    assert len(answer.labels) == 5
    assert cloud.requests[0].sections[0].shape == (1, 32, 32, 3)


@pytest.mark.parametrize("code", list(RefusalCode))
async def test_a_refusal_makes_the_edge_answer_and_say_why(
    artifact: Artifact, head: Head, agent: Agent, cloud: Uplink, album: Path, code: RefusalCode
) -> None:
    async def refuse(request: Request) -> Refusal:
        return Refusal(code, "because", request.request_id)

    cloud.answering = refuse
    answer = await agent.answer(Item(album / "p0.png"))
    assert (answer.answered_by, answer.fallback) == ("edge", f"{code.name}: because")
    agent.plan = head.plan(OUTPUT, "raw")
    assert answer.labels == (await agent.answer(Item(album / "p0.png"))).labels
    assert "edge_tail" in answer.stages_s


async def test_a_broken_link_makes_the_edge_answer_then_the_cloud_is_left_alone(
    agent: Agent, cloud: Uplink, album: Path
) -> None:
    async def fail(request: Request) -> Reply:
        raise LinkError("the cable is cut")

    cloud.answering = fail
    answers = await answer_all(agent, pictures_of(album)[:3])
    assert [answer.answered_by for answer in answers] == ["edge"] * 3
    assert [answer.fallback for answer in answers] == [
        "the cable is cut", "the cloud is away", "the cloud is away",
    ]  # fmt: skip
    assert len(cloud.requests) == 1
    assert answers[0].bytes_up > 0  # handed to the uplink; the others were not
    assert [answer.bytes_up for answer in answers[1:]] == [0, 0]


async def test_the_cloud_is_asked_again_after_the_pause(
    artifact: Artifact, head: Head, cloud: Uplink, album: Path
) -> None:
    now_s = 100.0
    plan = head.plan(middle(artifact), "raw")
    agent = Agent(head, plan, cloud, DEADLINE_S, Breaker(lambda: now_s))

    async def fail(request: Request) -> Reply:
        raise LinkError("the cable is cut")

    cloud.answering = fail
    item = Item(album / "p0.png")
    assert (await agent.answer(item)).answered_by == "edge"
    cloud.answering = cloud.finish
    assert (await agent.answer(item)).fallback == "the cloud is away"
    now_s += 0.7
    assert (await agent.answer(item)).answered_by == "cloud"
    assert (await agent.answer(item)).answered_by == "cloud"
    await agent.close()


async def test_retry_after_is_respected(
    artifact: Artifact, head: Head, cloud: Uplink, album: Path
) -> None:
    now_s = 100.0
    plan = head.plan(middle(artifact), "raw")
    agent = Agent(head, plan, cloud, DEADLINE_S, Breaker(lambda: now_s))

    async def refuse(request: Request) -> Refusal:
        return Refusal(RefusalCode.OVERLOADED, "full", request.request_id, retry_after_s=20.0)

    cloud.answering = refuse
    item = Item(album / "p0.png")
    await agent.answer(item)
    now_s += 19.9
    assert (await agent.answer(item)).fallback == "the cloud is away"
    assert len(cloud.requests) == 1
    await agent.close()


async def test_a_late_cloud_is_not_waited_for_and_the_edge_answers_in_time(
    artifact: Artifact, head: Head, album: Path
) -> None:
    class Silent:
        connection = None

        async def ask(self, frame: bytes, request_id: bytes, timeout_s: float) -> None:
            await asyncio.sleep(timeout_s)
            raise LinkError("no answer")

        async def close(self) -> None: ...

    deadline_s = 0.6
    agent = Agent(head, head.plan(middle(artifact), "raw"), Silent(), deadline_s)
    await agent.warm_up()
    started = time.perf_counter()
    answer = await agent.answer(Item(album / "p0.png"))
    assert time.perf_counter() - started <= deadline_s
    assert answer.total_s <= deadline_s
    assert (answer.answered_by, answer.fallback) == ("edge", "no answer")
    assert len(answer.labels) == 5
    await agent.close()


async def test_without_time_the_cloud_is_not_asked(
    artifact: Artifact, head: Head, cloud: Uplink, album: Path
) -> None:
    agent = Agent(head, head.plan(middle(artifact), "raw"), cloud, deadline_s=0.001)
    answer = await agent.answer(Item(album / "p0.png"))
    assert answer.answered_by == "edge"
    assert answer.fallback == "no time for the cloud: the deadline is 0.001 s"
    assert cloud.requests == []
    await agent.close()


async def test_having_had_no_time_does_not_open_the_breaker(
    artifact: Artifact, head: Head, cloud: Uplink, album: Path
) -> None:
    breaker = Breaker()
    plan = head.plan(middle(artifact), "raw")
    agent = Agent(head, plan, cloud, 0.001, breaker)
    await agent.answer(Item(album / "p0.png"))
    assert not breaker.is_open
    await agent.close()


async def test_without_a_cloud_the_edge_says_so(
    artifact: Artifact, head: Head, album: Path
) -> None:
    agent = Agent(head, head.plan(middle(artifact), "raw"), None, DEADLINE_S)
    answer = await agent.answer(Item(album / "p0.png"))
    assert (answer.answered_by, answer.fallback) == ("edge", "no cloud is configured")
    await agent.close()


def corrupted(reply: Reply) -> dict[str, Reply]:
    section = reply.sections[0]
    size = section.shape[-1]
    payload = bytes(section.payload)
    twice = Section((2, size), payload + payload[1:])
    half = Section(section.shape, bytes(section.payload)[:-4])
    return {
        "no tensor": dataclasses.replace(reply, sections=()),
        "two tensors": dataclasses.replace(reply, sections=reply.sections * 2),
        "other classes": dataclasses.replace(reply, sections=(Section((1, size + 1), b"\0"),)),
        "flat": dataclasses.replace(reply, sections=(Section((size,), section.payload),)),
        "cut short": dataclasses.replace(reply, sections=(half,)),
        "unknown codec": dataclasses.replace(reply, codec=250),
        "picture codec": dataclasses.replace(reply, codec=build_codec("jpeg").number),
        "zstd": dataclasses.replace(reply, codec=build_codec("affine-u8").number),
        "two answers in one": dataclasses.replace(reply, sections=(twice,)),
    }


@pytest.mark.parametrize(
    "how",
    [
        "no tensor", "two tensors", "other classes", "flat", "cut short", "unknown codec",
        "picture codec", "zstd", "two answers in one",
    ],
)  # fmt: skip
async def test_a_corrupted_reply_makes_the_edge_answer(
    agent: Agent, cloud: Uplink, album: Path, how: str
) -> None:
    async def corrupt(request: Request) -> Reply:
        return corrupted(await cloud.finish(request))[how]

    cloud.answering = corrupt
    answer = await agent.answer(Item(album / "p0.png"))
    assert answer.answered_by == "edge"
    assert answer.fallback
    assert len(answer.labels) == 5


async def test_the_plan_may_change_between_two_requests(
    artifact: Artifact, head: Head, agent: Agent, cloud: Uplink, album: Path
) -> None:
    names = artifact.manifest.positions
    answers = []
    for name in names:
        agent.plan = plan_with(head, name, RawCodec(exact=True))
        answers.append(await agent.answer(Item(album / "p0.png")))
    assert [answer.plan["cut"] for answer in answers] == list(names)
    assert [request.cut for request in cloud.requests] == list(range(len(names) - 1))
    assert len({answer.labels for answer in answers}) == 1


async def test_a_request_keeps_the_plan_it_began_with(
    artifact: Artifact, head: Head, agent: Agent, cloud: Uplink, album: Path
) -> None:
    first = agent.plan

    async def change_then_refuse(request: Request) -> Refusal:
        agent.plan = head.plan(OUTPUT, "raw")
        return Refusal(RefusalCode.INTERNAL, "no", request.request_id)

    cloud.answering = change_then_refuse
    answer = await agent.answer(Item(album / "p0.png"))
    assert answer.plan["cut"] == first.cut
    assert len(answer.labels) == 5
    assert (await agent.answer(Item(album / "p0.png"))).plan["cut"] == OUTPUT


async def test_each_input_gets_exactly_one_answer_with_many_in_flight(
    agent: Agent, cloud: Uplink, album: Path
) -> None:
    under_way = most = 0

    async def wait_for_company(request: Request) -> Reply:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.03)
        under_way -= 1
        return await cloud.finish(request)

    cloud.answering = wait_for_company
    answers = await answer_all(agent, pictures_of(album) * 3, in_flight=4)
    assert sorted(answer.id for answer in answers) == sorted(
        path.name for path in pictures_of(album) * 3
    )
    assert {answer.answered_by for answer in answers} == {"cloud"}
    assert len({answer.request_id for answer in answers}) == 18
    assert 2 <= most <= 4
    by_id = {answer.id: answer.labels for answer in answers}
    assert all(answer.labels == by_id[answer.id] for answer in answers)


async def test_one_in_flight_keeps_the_order(agent: Agent, album: Path) -> None:
    answers = await answer_all(agent, pictures_of(album))
    assert [answer.id for answer in answers] == [path.name for path in pictures_of(album)]


async def test_the_next_input_is_taken_only_when_there_is_room(
    agent: Agent, cloud: Uplink, album: Path
) -> None:
    taken: list[str] = []
    hold = asyncio.Event()

    async def source() -> AsyncIterator[Item]:
        for path in pictures_of(album):
            taken.append(path.name)
            yield Item(path)

    async def held(request: Request) -> Reply:
        await hold.wait()
        return await cloud.finish(request)

    cloud.answering = held
    answers: list[Answer] = []
    running = asyncio.create_task(agent.run(source(), 2, keeping(answers)))
    async with asyncio.timeout(20):
        while len(cloud.requests) < 2:  # noqa: ASYNC110  # the fake cloud tells nobody
            await asyncio.sleep(0.01)
    assert taken == ["p0.png", "p1.png"]
    hold.set()
    await running
    assert len(answers) == 6


@pytest.mark.parametrize("in_flight", [1, 3])
async def test_an_unreadable_picture_gets_one_line_and_the_others_go_on(
    agent: Agent, album: Path, in_flight: int
) -> None:
    (album / "p1.png").write_bytes(b"no picture")
    (album / "p3.png").unlink()
    paths = [album / f"p{number}.png" for number in range(6)]
    answers = {answer.id: answer for answer in await answer_all(agent, paths, in_flight)}
    assert len(answers) == 6
    for number, answer in sorted(answers.items()):
        is_bad = number in ("p1.png", "p3.png")
        assert answer.answered_by == ("nobody" if is_bad else "cloud")
        assert (answer.error is not None) == is_bad
        assert bool(answer.labels) != is_bad


@pytest.mark.parametrize("in_flight", [1, 4])
async def test_a_surprise_on_the_way_to_the_cloud_costs_no_answer(
    agent: Agent, cloud: Uplink, album: Path, in_flight: int
) -> None:
    async def surprise(request: Request) -> Reply:
        raise ZeroDivisionError("surprise")

    cloud.answering = surprise
    answers = await answer_all(agent, pictures_of(album), in_flight)
    assert len(answers) == 6
    assert {answer.answered_by for answer in answers} == {"edge"}
    assert "ZeroDivisionError" in answers[0].fallback


async def test_a_surprise_in_the_head_costs_one_answer_and_not_the_agent(
    agent: Agent, head: Head, album: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Cursed:
        def read(self) -> bytes:
            raise ZeroDivisionError("cursed")

        name = "cursed"

    bad = await agent.answer(Cursed())
    assert (bad.answered_by, bad.id) == ("nobody", "cursed")
    assert "internal error" in bad.error
    assert any(record.exc_info for record in caplog.records)
    good = await agent.answer(Item(album / "p0.png"))
    assert good.answered_by == "cloud"


async def test_a_sink_that_is_gone_ends_the_run_as_it_is(agent: Agent, album: Path) -> None:
    async def gone(answer: Answer) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        await agent.run(read_folder(pictures_of(album)), 2, gone)


async def test_a_source_that_fails_ends_the_run_as_it_is(agent: Agent, album: Path) -> None:
    async def failing() -> AsyncIterator[Item]:
        yield Item(album / "p0.png")
        raise ZeroDivisionError

    answers: list[Answer] = []
    with pytest.raises(ZeroDivisionError):
        await agent.run(failing(), 2, keeping(answers))


async def test_a_run_that_is_cancelled_is_cancelled(
    agent: Agent, cloud: Uplink, album: Path
) -> None:
    async def never(request: Request) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError

    cloud.answering = never
    running = asyncio.create_task(answer_all(agent, pictures_of(album)))
    await asyncio.sleep(0.05)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_warm_up_runs_off_the_event_loop(agent: Agent, head: Head) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    await agent.warm_up()
    ticking.cancel()
    assert ticks > 1


async def test_close_gives_the_uplink_and_the_threads_back(agent: Agent, cloud: Uplink) -> None:
    await agent.warm_up()
    await agent.close()
    assert cloud.is_closed
    async with asyncio.timeout(20):
        while any(thread.name == "compute" for thread in threading.enumerate()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_features_the_codec_cannot_carry_are_finished_here(
    artifact: Artifact, head: Head, cloud: Uplink, album: Path
) -> None:
    class Refusing(RawCodec):
        def encode(self, tensor: Array, index: int = 0) -> bytes:
            raise CodecError("not these features")

    agent = Agent(head, plan_with(head, middle(artifact), Refusing()), cloud, deadline_s=5.0)
    answer = await agent.answer(Item(album / "p0.png"))
    assert (answer.answered_by, answer.fallback) == ("edge", "not these features")
    assert len(answer.labels) == 5
    await agent.close()


async def test_time_for_finishing_here_is_kept_back_under_a_plan_that_never_ran(
    artifact: Artifact, chain: Chain, album: Path
) -> None:
    asked = []

    class Silent:
        connection = None

        async def ask(self, frame: bytes, request_id: bytes, timeout_s: float) -> None:
            asked.append(timeout_s)
            raise LinkError("no answer")

        async def close(self) -> None: ...

    head = Head(artifact, chain, slowdown=300.0)
    agent = Agent(head, head.plan(middle(artifact), "raw"), Silent(), deadline_s=30.0)
    await agent.warm_up()
    agent.plan = head.plan("input", "raw")
    answer = await agent.answer(Item(album / "p0.png"))
    assert answer.answered_by == "edge"
    # The whole model has more work left than the tail that was timed, so more is kept back.
    assert asked[0] < 30.0 - answer.stages_s["picture"] - 0.5 * answer.stages_s["edge_tail"]
    await agent.close()
