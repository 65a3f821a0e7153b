"""The real uplink against the real service in one process, no sockets; a real network."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import numpy as np
import onnxruntime
import pytest

from cloud_service.app import build_app
from cloud_service.scheduler import Scheduler
from cloud_service.service import Service
from cloud_service.tail import Tail
from edge_agent.answer import Answer
from edge_agent.head import Head
from edge_agent.loop import Agent
from edge_agent.source import Item, open_source
from edge_agent.uplink import HttpUplink
from splitserve.artifact import INPUT, Artifact, load_artifact
from splitserve.picture import decode_picture, list_pictures, normalise
from splitserve.runtime import Chain, RuntimeOptions, open_chain
from splitserve.wire import Limits

DEADLINE_S = 60.0
LABELS = {
    "coffee.png": {"espresso"},
    "camera.png": {"tripod"},
    "chelsea.png": {"tiger cat", "Egyptian cat", "tabby"},
}


@pytest.fixture(scope="module")
def artifact(lite0_artifact: Path) -> Artifact:
    return load_artifact(lite0_artifact)


@pytest.fixture(scope="module")
def chain(artifact: Artifact) -> Chain:
    return open_chain(artifact, RuntimeOptions(threads=1))


@pytest.fixture
def service(artifact: Artifact, chain: Chain) -> Iterator[Service]:
    scheduler = Scheduler(workers=1, waiting=8)
    yield Service(Tail(artifact, chain), scheduler, Limits())
    scheduler.close()


@pytest.fixture
async def agent(artifact: Artifact, chain: Chain, service: Service) -> AsyncIterator[Agent]:
    uplink = HttpUplink("http://cloud", Limits(), httpx.ASGITransport(app=build_app(service)))
    head = Head(artifact, chain)
    made = Agent(head, head.plan(INPUT, "raw"), uplink, DEADLINE_S)
    yield made
    await made.close()


@pytest.fixture(scope="module")
def whole(lite0: Path, artifact: Artifact, pictures: Path) -> dict[str, int]:
    """Best class of each picture by the unsplit ONNX file."""
    preprocess = artifact.manifest.preprocess
    assert preprocess is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        lite0.read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    best = {}
    for path in list_pictures(pictures):
        values = normalise(decode_picture(path.read_bytes(), preprocess), preprocess)
        (logits,) = session.run(None, {session.get_inputs()[0].name: values})
        best[path.name] = int(np.argmax(logits))
    return best


async def answer_all(agent: Agent, folder: Path) -> dict[str, Answer]:
    answers: list[Answer] = []

    async def keep(answer: Answer) -> None:
        answers.append(answer)

    await agent.run(open_source(str(folder), watch=False), 1, keep)
    assert [answer.id for answer in answers] == [path.name for path in list_pictures(folder)]
    return {answer.id: answer for answer in answers}


def check_labels(answers: dict[str, Answer]) -> None:
    for name, wanted in LABELS.items():
        assert answers[name].labels[0].name in wanted


async def test_every_cut_answers_what_the_unsplit_model_answers(
    artifact: Artifact, chain: Chain, agent: Agent, whole: dict[str, int], pictures: Path
) -> None:
    head = Head(artifact, chain)
    for name in artifact.manifest.positions[:-1]:
        agent.plan = head.plan(name, "raw")
        answers = await answer_all(agent, pictures)
        assert {answer.answered_by for answer in answers.values()} == {"cloud"}
        assert {answer.fallback for answer in answers.values()} == {None}
        assert {name: answer.labels[0].index for name, answer in answers.items()} == whole
        check_labels(answers)


@pytest.mark.parametrize(
    ("position", "codec"), [(0, "jpeg"), (0, "webp"), (2, "affine-u8"), (-2, "affine-u8")]
)
async def test_codecs_that_lose_a_little_keep_the_clear_answers(
    artifact: Artifact, chain: Chain, agent: Agent, pictures: Path, position: int, codec: str
) -> None:
    name = artifact.manifest.positions[position]
    agent.plan = Head(artifact, chain).plan(name, codec)
    answers = await answer_all(agent, pictures)
    assert {answer.answered_by for answer in answers.values()} == {"cloud"}
    check_labels(answers)


async def test_the_service_counts_what_it_answered(
    agent: Agent, service: Service, pictures: Path
) -> None:
    answer = await agent.answer(Item(pictures / "coffee.png"))
    assert answer.answered_by == "cloud"
    assert answer.stages_s["tail"] > 0
    text = service.metrics.text().decode()
    assert f'splitserve_requests_total{{cut="{INPUT}"}} 1.0' in text


async def test_a_service_that_drains_hands_its_work_to_the_edge(
    agent: Agent, service: Service, pictures: Path
) -> None:
    await service.drain()
    answer = await agent.answer(Item(pictures / "coffee.png"))
    assert answer.answered_by == "edge"
    assert answer.fallback is not None
    assert answer.fallback.startswith("DRAINING")
    assert answer.labels[0].name == "espresso"
