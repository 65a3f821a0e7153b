"""A stream is coded by what the cloud has acknowledged, and by itself whenever that is in doubt."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calibrated import PARAMETERS, write_stream

from edge_agent.answer import Answer
from edge_agent.fallback import Breaker
from edge_agent.head import Head
from edge_agent.history import History
from edge_agent.loop import Agent
from edge_agent.source import Item
from splitserve.artifact import Artifact, load_artifact
from splitserve.codec import Codecs, References
from splitserve.errors import LinkError, ReferenceMissingError, UsageError
from splitserve.runtime import Chain, RuntimeOptions, open_chain
from splitserve.wire import Refusal, RefusalCode, Reply, Request

DEADLINE_S = 20.0
FRAMES = 6
LEVEL_AT = 1  # of a payload


@pytest.fixture(scope="session")
def artifact(calibrated_artifact: Path) -> Artifact:
    return load_artifact(calibrated_artifact)


@pytest.fixture(scope="session")
def head(artifact: Artifact, chain: Chain) -> Head:
    return Head(artifact, chain)


@pytest.fixture(scope="module")
def stream(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_stream(tmp_path_factory.mktemp("stream"), artifact, 500, FRAMES)


@pytest.fixture
async def agent(artifact: Artifact, head: Head, cloud: Any) -> AsyncIterator[Agent]:
    async def as_the_service(request: Request) -> Reply | Refusal:
        try:
            return await cloud.finish(request)
        except ReferenceMissingError as error:
            return Refusal(RefusalCode.REFERENCE, str(error), request.request_id)

    cloud.answering = as_the_service
    made = Agent(head, head.plan(first_cut(artifact), "step-ans"), cloud, DEADLINE_S)
    yield made
    await made.close()


def first_cut(artifact: Artifact) -> str:
    return artifact.manifest.cuts[0].name


def levels(requests: list[Request]) -> list[int]:
    """Motion level of each request; 0 is whole."""
    return [request.sections[0].payload[LEVEL_AT] for request in requests]


async def answer_all(agent: Agent, paths: list[Path]) -> list[Answer]:
    return [await agent.answer(Item(path)) for path in paths]


async def whole_answers(head: Head, cloud: Any, cut: str, stream: list[Path]) -> list[Answer]:
    agent = Agent(head, head.plan(cut, "step-ans"), cloud, DEADLINE_S, temporal=False)
    answers = await answer_all(agent, stream)
    agent._compute.close()
    cloud.requests.clear()
    return answers


async def test_a_stream_has_the_same_answers_in_fewer_bytes(
    artifact: Artifact, head: Head, agent: Agent, cloud: Any, stream: list[Path]
) -> None:
    whole = await whole_answers(head, cloud, first_cut(artifact), stream)
    answers = await answer_all(agent, stream)
    assert levels(cloud.requests)[0] == 0
    assert all(level > 0 for level in levels(cloud.requests)[1:])
    assert [answer.labels for answer in answers] == [answer.labels for answer in whole]
    assert {answer.answered_by for answer in (*whole, *answers)} == {"cloud"}
    sizes, whole_sizes = ([answer.bytes_up for answer in some] for some in (answers, whole))
    assert sizes[0] == whole_sizes[0]
    assert all(size < other for size, other in zip(sizes[1:], whole_sizes[1:], strict=True))


async def test_without_the_option_every_frame_is_whole(
    artifact: Artifact, head: Head, cloud: Any, stream: list[Path]
) -> None:
    agent = Agent(
        head, head.plan(first_cut(artifact), "step-ans"), cloud, DEADLINE_S, temporal=False
    )
    await answer_all(agent, stream)
    assert set(levels(cloud.requests)) == {0}
    await agent.close()


async def test_over_http_every_frame_is_whole(agent: Agent, cloud: Any, stream: list[Path]) -> None:
    cloud.connection = None
    await answer_all(agent, stream)
    assert set(levels(cloud.requests)) == {0}


async def test_the_request_carries_the_codecs_parameter(
    artifact: Artifact, head: Head, agent: Agent, cloud: Any, stream: list[Path]
) -> None:
    for quality, parameter in PARAMETERS.items():
        agent.plan = head.plan(first_cut(artifact), "step-ans", quality)
        await agent.answer(Item(stream[0]))
        assert cloud.requests[-1].parameter == parameter


async def test_a_new_connection_begins_with_a_whole_frame(
    agent: Agent, cloud: Any, stream: list[Path]
) -> None:
    for turn, path in enumerate(stream):
        if turn == 3:
            cloud.connection, cloud.references = 2, References()
        await agent.answer(Item(path))
    assert [level > 0 for level in levels(cloud.requests)] == [False, True, True] * 2


async def test_a_frame_whose_connection_went_meanwhile_is_made_whole_before_it_is_sent(
    head: Head, agent: Agent, cloud: Any, stream: list[Path]
) -> None:
    await agent.answer(Item(stream[0]))
    begun = await agent._begin(Item(stream[1]))
    assert begun.work.coded.built_on == 1
    cloud.connection, cloud.references = 2, References()
    answer = await agent._complete(begun)
    assert (answer.answered_by, answer.fallback) == ("cloud", None)
    assert levels(cloud.requests) == [0, 0]
    assert "encode_whole" in answer.stages_s


async def test_a_frame_that_got_no_reply_is_built_on_by_none(
    agent: Agent, cloud: Any, stream: list[Path]
) -> None:
    tags = []
    answering = cloud.answering

    async def lose_the_second(request: Request) -> Reply | Refusal:
        reply = await answering(request)
        tags.append(bytes(request.sections[0].payload[2:10]))
        if len(tags) == 2:
            raise LinkError("no answer within 1 s")
        return reply

    cloud.answering = lose_the_second
    agent._breaker = Breaker(pausing())
    answers = await answer_all(agent, [stream[turn % 2] for turn in range(4)])
    assert [answer.answered_by for answer in answers] == ["cloud", "edge", "cloud", "cloud"]
    assert all(level > 0 for level in levels(cloud.requests)[1:])
    assert tags[2] == tags[1]  # the first frame's, not that of the one whose reply was lost
    assert tags[3] == tags[2]  # the third frame is the first picture again


def pausing() -> Any:
    """A clock that goes a minute ahead whenever it is read."""
    now_s = [0.0]

    def clock() -> float:
        now_s[0] += 60
        return now_s[0]

    return clock


async def test_a_cloud_that_forgot_gets_the_same_input_whole_at_once(
    artifact: Artifact, head: Head, agent: Agent, cloud: Any, stream: list[Path]
) -> None:
    whole = await whole_answers(head, cloud, first_cut(artifact), stream)
    answers = []
    for turn, path in enumerate(stream):
        if turn == 3:
            cloud.references = References()
        answers.append(await agent.answer(Item(path)))
    assert [answer.labels for answer in answers] == [answer.labels for answer in whole]
    assert {answer.answered_by for answer in answers} == {"cloud"}
    assert {answer.fallback for answer in answers} == {None}
    assert [level > 0 for level in levels(cloud.requests)] == [
        False, True, True, True, False, True, True,
    ]  # fmt: skip
    again, first = cloud.requests[4], cloud.requests[3]
    assert again.request_id == first.request_id
    assert again.deadline_s <= first.deadline_s
    assert answers[3].bytes_up > whole[3].bytes_up
    assert not agent._breaker.is_open


async def test_a_cloud_that_refuses_even_a_whole_frame_is_asked_no_third_time(
    agent: Agent, cloud: Any, stream: list[Path]
) -> None:
    await agent.answer(Item(stream[0]))

    async def refuse(request: Request) -> Refusal:
        return Refusal(RefusalCode.REFERENCE, "never heard of it", request.request_id)

    cloud.answering = refuse
    answer = await agent.answer(Item(stream[1]))
    assert (answer.answered_by, answer.fallback) == ("edge", "REFERENCE: never heard of it")
    assert len(cloud.requests) == 3
    assert agent._breaker.is_open


async def test_a_refusal_that_comes_too_late_for_a_second_try_is_finished_here_in_time(
    artifact: Artifact, head: Head, cloud: Any, stream: list[Path]
) -> None:
    deadline_s = 1.0
    agent = Agent(head, head.plan(first_cut(artifact), "step-ans"), cloud, deadline_s)
    await agent.answer(Item(stream[0]))

    async def dither(request: Request) -> Refusal:
        await asyncio.sleep(request.deadline_s)
        return Refusal(RefusalCode.REFERENCE, "forgotten", request.request_id)

    cloud.answering = dither
    answer = await agent.answer(Item(stream[1]))
    assert answer.answered_by == "edge"
    assert "no time for the cloud" in answer.fallback
    assert answer.total_s <= deadline_s
    assert len(cloud.requests) == 2
    await agent.close()


async def test_with_many_in_flight_every_answer_is_the_same(
    artifact: Artifact, head: Head, agent: Agent, cloud: Any, stream: list[Path]
) -> None:
    whole = await whole_answers(head, cloud, first_cut(artifact), stream)
    wanted = {answer.id: answer.labels for answer in whole}

    async def source() -> AsyncIterator[Item]:
        for path in stream * 4:
            yield Item(path)

    answers: list[Answer] = []

    async def keep(answer: Answer) -> None:
        answers.append(answer)

    await agent.run(source(), 5, keep)
    assert len(answers) == 4 * len(stream)
    assert {answer.answered_by for answer in answers} == {"cloud"}
    assert all(answer.labels == wanted[answer.id] for answer in answers)
    assert sum(level > 0 for level in levels(cloud.requests)) > len(stream)


def test_what_the_history_knows_makes_payloads_that_decode_to_the_same_integers(
    artifact: Artifact, head: Head, stream: list[Path]
) -> None:
    plan = head.plan(first_cut(artifact), "step-ans")
    history, references, decoder = History(lambda: 1), References(), Codecs(artifact)
    codec = decoder.decoder(plan.codec.number, plan.position, plan.codec.parameter)
    for path in stream:
        work = head.run(path.read_bytes(), plan, history)
        section = work.sections[0]
        got = codec.decode(memoryview(section.payload), section.shape, "float32", 0, references)
        alone = head.run(path.read_bytes(), plan).sections[0]
        wanted = codec.decode(memoryview(alone.payload), alone.shape, "float32", 0)
        np.testing.assert_array_equal(got, wanted)
        history.acknowledge(plan.position, work.coded, 1)


def test_making_a_frame_whole_gives_the_bytes_that_it_has_without_a_history(
    artifact: Artifact, head: Head, stream: list[Path]
) -> None:
    plan, history = head.plan(first_cut(artifact), "step-ans"), History(lambda: 1)
    history.acknowledge(plan.position, head.run(stream[0].read_bytes(), plan, history).coded, 1)
    work = head.run(stream[1].read_bytes(), plan, history)
    alone = head.run(stream[1].read_bytes(), plan)
    assert work.coded.built_on == 1
    assert work.sections != alone.sections
    head.make_whole(work, plan)
    assert work.coded.built_on is None
    assert work.sections == alone.sections


def test_tensors_of_one_cut_are_coded_each_by_its_own(
    calibrated_fork: Path, tmp_path: Path
) -> None:
    artifact = load_artifact(calibrated_fork)
    head = Head(artifact, open_chain(artifact, RuntimeOptions(threads=1)))
    (cut,) = artifact.manifest.cuts
    plan = head.plan(cut.name, "step-ans", 99.9)
    history, references = History(lambda: 1), References()
    codec = Codecs(artifact).decoder(5, 1, plan.codec.parameter)
    for path in write_stream(tmp_path, artifact, 7, FRAMES):
        work, alone = (head.run(path.read_bytes(), plan, past) for past in (history, None))
        assert [one.index for one in work.coded.symbols] == [0, 1]
        for index, (section, other) in enumerate(zip(work.sections, alone.sections, strict=True)):
            payload = memoryview(section.payload)
            got = codec.decode(payload, section.shape, "float32", index, references)
            wanted = codec.decode(memoryview(other.payload), other.shape, "float32", index)
            np.testing.assert_array_equal(got, wanted)
        history.acknowledge(1, work.coded, 1)


def test_step_ans_without_tables_is_refused_with_the_way_out(
    tiny_artifact: Path, chain: Chain
) -> None:
    bare = load_artifact(tiny_artifact)
    with pytest.raises(UsageError, match="splitserve calibrate") as refusal:
        Head(bare, chain).plan(first_cut(bare), "step-ans")
    assert first_cut(bare) in str(refusal.value)


def test_a_floor_that_no_rate_promises_is_refused_with_those_there_are(
    artifact: Artifact, head: Head
) -> None:
    with pytest.raises(UsageError, match=r"there are: 99\.9, 99, 95"):
        head.plan(first_cut(artifact), "step-ans", 99.99)
