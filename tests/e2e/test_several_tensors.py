"""The real agent and the real tail through cuts at which several tensors cross."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from graphs import TINY_RECIPE, fork_net, write_model

from cloud_service.app import build_app
from cloud_service.scheduler import Scheduler
from cloud_service.service import Service
from cloud_service.tail import Tail
from edge_agent.head import Head
from edge_agent.loop import Agent
from edge_agent.source import Item
from edge_agent.uplink import HttpUplink
from splitserve.artifact import Artifact
from splitserve.codec import RawCodec
from splitserve.runtime import Chain, RuntimeOptions, open_chain
from splitserve.split import choose_cuts, load_graph, split_model
from splitserve.tensors import Array
from splitserve.wire import Limits, Reply, Request, decode_frame, encode_frame

CUTS = {False: "a+b", True: "image+a+b"}
# Of the largest output: float16 keeps 11 bits of a feature, affine-u8 eight of its range.
TOLERANCE = {"raw": 2e-3, "affine-u8": 2e-2}


@pytest.fixture(scope="module", params=[False, True], ids=["two tensors", "and the input"])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("fork")
    path = write_model(fork_net(reads_image_late=request.param), folder / "fork.onnx")
    graph = load_graph(path)
    names = [*(["stem"] if not request.param else []), CUTS[request.param]]
    cuts = choose_cuts(graph, [*names, "image+pool" if request.param else "pool"])
    return split_model(graph, cuts, TINY_RECIPE, path, folder / "artifact")


@pytest.fixture(scope="module")
def chain(artifact: Artifact) -> Chain:
    return open_chain(artifact, RuntimeOptions(threads=1))


@pytest.fixture
def service(artifact: Artifact, chain: Chain) -> Iterator[Service]:
    tail = Tail(artifact, chain)
    tail.warm_up()
    scheduler = Scheduler(workers=1, waiting=8)
    yield Service(tail, scheduler, Limits())
    scheduler.close()


def cut_of(artifact: Artifact) -> str:
    return next(cut.name for cut in artifact.manifest.cuts if cut.name in CUTS.values())


def logits(reply: Reply) -> Array:
    (section,) = reply.sections
    return RawCodec().decode(memoryview(section.payload), section.shape, "float32")


@pytest.mark.parametrize("codec", ["raw", "affine-u8"])
def test_tail_finishes_what_the_head_sends_in_several_tensors(
    artifact: Artifact, chain: Chain, pictures: Path, codec: str
) -> None:
    head, tail = Head(artifact, chain), Tail(artifact, chain)
    plan = head.plan(cut_of(artifact), codec)
    for path in sorted(pictures.iterdir()):
        work = head.run(path.read_bytes(), plan)
        assert len(work.sections) == len(artifact.manifest.egress(plan.position)) >= 2
        request = Request(bytes(16), artifact.id, plan.position, plan.codec.number, work.sections)
        arrived = decode_frame(encode_frame(request), Limits())
        assert isinstance(arrived, Request)
        wanted = head.finish(work)["logits"]
        error = np.abs(logits(tail.answer(arrived)) - wanted).max() / np.abs(wanted).max()
        assert error <= TOLERANCE[codec]


@pytest.mark.parametrize("codec", ["raw", "affine-u8"])
async def test_agent_answers_through_every_position(
    artifact: Artifact, chain: Chain, service: Service, pictures: Path, codec: str
) -> None:
    uplink = HttpUplink("http://cloud", Limits(), httpx.ASGITransport(app=build_app(service)))
    head = Head(artifact, chain)
    agent = Agent(head, head.plan("output", codec), uplink, 60.0)
    await agent.warm_up()
    item = Item(pictures / "coffee.png")
    alone = await agent.answer(item)
    assert (alone.answered_by, alone.bytes_up) == ("edge", 0)
    for name in artifact.manifest.positions[:-1]:
        agent.plan = head.plan(name, codec)
        answer = await agent.answer(item)
        assert (answer.answered_by, answer.fallback, answer.error) == ("cloud", None, None)
        assert answer.labels[0].index == alone.labels[0].index
        assert answer.bytes_up > 0
    await agent.close()
