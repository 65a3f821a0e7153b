"""Easy inputs answered early: by a fixed plan, by plans of a file, and what the pilot hears."""

import asyncio
import dataclasses
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_agent.answer import Answer
from edge_agent.command import Options, open_exits
from edge_agent.head import Head
from edge_agent.loop import Agent
from edge_agent.pilot import Pilot
from edge_agent.source import Item
from splitserve.artifact import OUTPUT, Artifact, load_artifact
from splitserve.cli import main
from splitserve.errors import IntegrityError, LinkError, UsageError
from splitserve.exits import ExitHead, Gate
from splitserve.picture import list_pictures
from splitserve.plans import Link, PlanFile, PlanOption
from splitserve.runtime import Chain, RuntimeOptions, open_chain
from splitserve.wire import Reply, Request

Capture = pytest.CaptureFixture[str]
DEADLINE_S = 5.0
ONE = RuntimeOptions(threads=1)


@pytest.fixture(scope="session")
def artifact(exit_artifact: Path) -> Artifact:
    return load_artifact(exit_artifact)


@pytest.fixture(scope="session")
def chain(artifact: Artifact) -> Chain:
    return open_chain(artifact, ONE)


Make = Callable[..., Agent]


@pytest.fixture
def make(artifact: Artifact, chain: Chain, cloud: Any) -> Make:
    def agent(budget: float, position: int = 2) -> Agent:
        gates = {position: Gate(ExitHead(artifact, position, ONE), budget)}
        head = Head(artifact, chain, exits=gates)
        plan = head.plan(artifact.manifest.positions[position], "affine-u8")
        return Agent(head, plan, cloud, DEADLINE_S)

    return agent


async def answers_of(agent: Agent, scenes: Path, count: int) -> list[Answer]:
    paths, answers = list_pictures(scenes), []
    for number in range(count):
        answers.append(await agent.answer(Item(paths[number % len(paths)])))
        await asyncio.gather(*agent._background)
    return answers


async def test_the_sure_are_answered_here_and_the_others_go_to_the_cloud(
    make: Make, cloud: Any, scenes: Path, artifact: Artifact
):
    agent = make(50)
    await agent.warm_up()
    answers = await answers_of(agent, scenes, 120)
    early = [answer for answer in answers if "exit" in answer.plan]
    others = [answer for answer in answers if "exit" not in answer.plan]
    assert len(others) == len(cloud.requests) == pytest.approx(60, abs=8)
    name = artifact.manifest.positions[2]
    for answer in early:
        assert (answer.answered_by, answer.fallback, answer.bytes_up) == ("edge", None, 0)
        assert answer.plan == {"cut": name, "codec": "none", "exit": name}
        assert answer.labels[0].score == pytest.approx(answer.confidence, abs=1e-5)
        assert list(answer.stages_s) == ["picture", "normalise", "head", "exit"]
    for answer in others:
        assert answer.answered_by == "cloud"
        assert answer.plan == {"cut": name, "codec": "affine-u8"}
        assert {"exit", "encode"} <= answer.stages_s.keys()
        assert answer.confidence is not None
    mean = [sum(a.confidence for a in part) / len(part) for part in (early, others)]
    assert mean[0] > mean[1]
    await agent.close()


async def test_an_early_answer_is_the_whole_models(make: Make, scenes: Path):
    agent = make(0)
    early = await answers_of(agent, scenes, 40)
    agent.plan = agent._head.plan(OUTPUT, "raw")
    whole = await answers_of(agent, scenes, 40)
    same = [a.labels[0].index == b.labels[0].index for a, b in zip(early, whole, strict=True)]
    assert sum(same) >= 38
    assert {answer.confidence for answer in whole} == {None}
    await agent.close()


async def test_a_budget_of_everything_sends_everything(make: Make, cloud: Any, scenes: Path):
    agent = make(100)
    answers = await answers_of(agent, scenes, 20)
    assert {answer.answered_by for answer in answers} == {"cloud"}
    assert len(cloud.requests) == 20
    await agent.close()


async def test_a_budget_of_nothing_sends_what_the_floor_refuses(
    make: Make, cloud: Any, scenes: Path
):
    agent = make(0)
    answers = await answers_of(agent, scenes, 40)
    floor = agent._head.exits[2].budget.threshold
    assert floor > 0.5
    for answer in answers:
        assert (answer.answered_by == "cloud") == (answer.confidence < floor)
    assert any(answer.answered_by == "edge" for answer in answers)
    await agent.close()


async def test_at_another_cut_and_without_an_exit_nothing_changes(
    make: Make, cloud: Any, scenes: Path
):
    agent = make(0)
    agent.plan = agent._head.plan(agent._head.artifact.manifest.positions[1], "affine-u8")
    (answer,) = await answers_of(agent, scenes, 1)
    assert (answer.answered_by, answer.confidence) == ("cloud", None)
    assert "exit" not in answer.stages_s
    await agent.close()


async def test_early_answers_go_on_while_the_cloud_is_away(make: Make, cloud: Any, scenes: Path):
    async def fail(request: Request) -> Reply:
        raise LinkError("the cable is cut")

    cloud.answering = fail
    agent = make(50)
    answers = await answers_of(agent, scenes, 60)
    assert {answer.answered_by for answer in answers} == {"edge"}
    for answer in answers:
        assert (answer.fallback is None) == ("exit" in answer.plan)
        assert answer.labels
    assert 0 < sum("exit" in answer.plan for answer in answers) < 60
    await agent.close()


async def test_the_log_says_how_many_there_were(
    make: Make, scenes: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    agent = make(50)
    answers = await answers_of(agent, scenes, 40)
    await agent.close()
    (record,) = [one for one in caplog.records if one.message == "early answers in total"]
    assert (record.inputs, record.upload_budget) == (40, 50)
    assert record.early == sum("exit" in answer.plan for answer in answers)
    assert record.upload == pytest.approx(100 * (1 - record.early / 40), abs=0.01)


# Plans of a file


def option(name: str, cut: str, codec: str, bytes_up: float, edge_s: float) -> PlanOption:
    return PlanOption(
        name=name, cut=cut, codec=codec, bytes_up=bytes_up, edge_s=edge_s, edge_p90_s=edge_s,
        cloud_s=0.005, cloud_p90_s=0.005,
    )  # fmt: skip


def piloted(artifact: Artifact, chain: Chain, cloud: Any, budget: float, local_s: float) -> Agent:
    cut = artifact.manifest.positions[2]
    options = [
        option("edge", OUTPUT, "none", 0, local_s),
        option("split", cut, "affine-u8", 2000, 0.002),
    ]
    head = Head(artifact, chain, exits={2: Gate(ExitHead(artifact, 2, ONE), budget)})
    plans = [head.plan(one.cut, "raw" if one.is_local else one.codec) for one in options]
    pilot = Pilot(options, plans, DEADLINE_S, Link(uplink_bps=100e6, rtt_s=0.001))
    return Agent(head, pilot, cloud, DEADLINE_S)


async def test_the_pilot_hears_the_edges_time_of_an_early_answer_and_nothing_of_the_link(
    artifact: Artifact, chain: Chain, cloud: Any, scenes: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    agent = piloted(artifact, chain, cloud, 50, local_s=1.0)
    told: list[tuple[int, float]] = []
    pilot = agent._pilot
    observe = pilot.controller.edge_ran
    pilot.controller.edge_ran = lambda number, s: (told.append((number, s)), observe(number, s))
    answers = await answers_of(agent, scenes, 60)
    early = ["exit" in answer.plan for answer in answers]
    assert 0 < sum(early) == pilot.counts.early < 60
    assert pilot.counts.replies == len(cloud.requests) == 60 - sum(early)
    encode_s, expected = None, []
    for answer, is_early in zip(answers, early, strict=True):
        stages = answer.stages_s
        seen_s = stages["picture"] + stages["normalise"] + stages["head"]
        encode_s = encode_s if is_early else stages["encode"]
        if encode_s is not None:
            expected.append((1, pytest.approx(seen_s + encode_s)))
    assert told == expected
    await agent.close()
    (record,) = [one for one in caplog.records if one.message == "plans in total"]
    assert record.early == sum(early)


async def test_probes_are_sent_and_answered_by_the_whole_model(
    artifact: Artifact, chain: Chain, cloud: Any, scenes: Path
):
    """Edge-only is the best plan by far: uploads are probes, and no exit is asked."""
    agent = piloted(artifact, chain, cloud, 0, local_s=1e-5)
    answers = await answers_of(agent, scenes, 12)
    probed = [answer for answer in answers if "probe" in answer.plan]
    assert len(cloud.requests) == len(probed) >= 1
    assert {answer.plan["cut"] for answer in answers} == {OUTPUT}
    assert {answer.confidence for answer in answers} == {None}
    await agent.close()


async def test_a_trial_is_sent_whatever_the_exit_says(
    artifact: Artifact, chain: Chain, cloud: Any, scenes: Path, monkeypatch: pytest.MonkeyPatch
):
    agent = piloted(artifact, chain, cloud, 0, local_s=1.0)
    choose = agent._pilot.controller.choose

    def trying(*args: Any, **more: Any) -> Any:
        return dataclasses.replace(choose(*args, **more), is_trial=True)

    monkeypatch.setattr(agent._pilot.controller, "choose", trying)
    answers = await answers_of(agent, scenes, 5)
    assert {answer.answered_by for answer in answers} == {"cloud"}
    await agent.close()


# What the command opens


def options(artifact: Artifact, **more: Any) -> Options:
    return Options(artifact=artifact.root, source="-", cloud="http://127.0.0.1:9", **more)


def plan_file(artifact: Artifact, budget: float | None) -> PlanFile:
    cut = artifact.manifest.positions[2]
    return PlanFile(
        artifact_id=artifact.id.hex(),
        options=(option("edge", OUTPUT, "none", 0, 1), option("split", cut, "raw", 9, 1)),
        upload_budget=budget,
    )


def test_exits_are_off_unless_asked_for(artifact: Artifact):
    assert open_exits(options(artifact), artifact, [2], None) == {}
    assert open_exits(options(artifact), artifact, [2, 4], plan_file(artifact, None)) == {}


def test_a_flag_or_the_plan_file_turns_them_on(artifact: Artifact):
    assert list(open_exits(options(artifact, upload_budget=70), artifact, [2], None)) == [2]
    assert list(open_exits(options(artifact), artifact, [2, 4], plan_file(artifact, 70))) == [2]


def test_an_agreement_that_is_not_kept_is_refused_or_leaves_the_exit_out(
    artifact: Artifact, caplog: pytest.LogCaptureFixture
):
    wanted = options(artifact, upload_budget=70, exit_agreement=99.9)
    with pytest.raises(UsageError, match=r"keeps 99\.9 % agreement at no confidence"):
        open_exits(wanted, artifact, [2], None)
    wanted = options(artifact, exit_agreement=99.9)
    assert open_exits(wanted, artifact, [2], plan_file(artifact, 70)) == {}
    assert "an exit is left out" in caplog.messages


def words(artifact: Path, *more: str) -> list[str]:
    flags = ["--artifact", str(artifact), "--source", str(artifact)]
    return ["agent", *flags, "--cloud", "http://127.0.0.1:9", *more]


def test_called_wrongly(exit_artifact: Path, calibrated_artifact: Path, capsys: Capture):
    cut = load_artifact(exit_artifact).manifest.cuts[0].name
    assert main(words(calibrated_artifact, "--cut", cut, "--upload-budget", "70")) == 2
    assert "--exits CUT" in " ".join(capsys.readouterr().err.split())
    assert main(words(exit_artifact, "--cut", "input", "--upload-budget", "70")) == 2
    assert "input has no exit" in capsys.readouterr().err
    assert main(words(exit_artifact, "--plan", "p.json", "--upload-budget", "70")) == 2
    assert "leave out --upload-budget" in capsys.readouterr().err
    assert main(words(exit_artifact, "--cut", cut, "--upload-budget", "101")) == 2


def test_a_tampered_exit_keeps_the_agent_from_starting(artifact: Artifact, tmp_path: Path):
    folder = shutil.copytree(artifact.root, tmp_path / "a")
    path = folder / artifact.manifest.cuts[1].exit.graph.file
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    broken = load_artifact(folder)
    with pytest.raises(IntegrityError):
        open_exits(options(broken, upload_budget=70), broken, [2], None)
