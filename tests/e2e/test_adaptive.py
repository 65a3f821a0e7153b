"""`splitserve agent --plan` as a process: a link that changes, a cloud that dies."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from cloud_service.tail import Tail
from edge_agent.head import Head
from splitserve.artifact import load_artifact
from splitserve.bench.link import Link, LinkSettings
from splitserve.plans import PlanFile, PlanOption
from splitserve.runtime import RuntimeOptions, open_chain
from splitserve.wire import Request, encode_frame

SLOWDOWN = 5.0
PERIOD_S = 0.2
DEADLINE_S = 2.0
DELAY_S = 0.005
ROUNDS = 5
FOLLOWS = 50  # requests within which every step is followed; on a quiet machine it takes 3 to 6
LABELS = {"coffee.jpg": "espresso", "camera.jpg": "tripod"}
WAYS = (("output", "raw", None), ("input", "jpeg", 95.0), ("block11", "affine-u8", None))

Line = dict[str, Any]
Start = Callable[..., Any]


def measure(head: Head, tail: Tail, way: tuple[str, str, float | None], picture: bytes) -> Any:
    """Profile one way to run the model, a small stand-in for `splitserve profile`."""
    plan = head.plan(*way)
    edge_s, cloud_s, size = [], [], 0
    for _ in range(ROUNDS):
        work = head.run(picture, plan)
        edge_s.append(sum(work.stages_s.values()))
        if head.is_local(plan):
            continue
        codec = plan.codec
        request = Request(
            bytes(16), head.artifact.id, plan.position, codec.number, work.sections, 1.0,
            codec.parameter,
        )  # fmt: skip
        size = len(encode_frame(request))
        times = tail.answer(request).timings
        cloud_s.append(times.decode_s + times.compute_s)
    return PlanOption(
        name=way[0],
        cut=way[0],
        codec="none" if head.is_local(plan) else way[1],
        quality=way[2],
        bytes_up=size,
        edge_s=statistics.median(edge_s),
        edge_p90_s=max(edge_s),
        cloud_s=statistics.median(cloud_s or [0.0]),
        cloud_p90_s=max(cloud_s or [0.0]),
    )


@pytest.fixture(scope="module")
def pictures(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The session's pictures, small, so that reading them is the least of the work."""
    folder = tmp_path_factory.mktemp("small")
    for path in pictures.iterdir():
        with Image.open(path) as image:
            small = ImageOps.fit(image.convert("RGB"), (256, 256))
            small.save(folder / f"{path.stem}.jpg", quality=95)
    return folder


@pytest.fixture(scope="module")
def plan_file(
    lite0_artifact: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    artifact = load_artifact(lite0_artifact)
    chain = open_chain(artifact, RuntimeOptions(threads=1))
    head, tail = Head(artifact, chain, SLOWDOWN), Tail(artifact, chain)
    picture = (pictures / "coffee.jpg").read_bytes()
    options = [measure(head, tail, way, picture) for way in WAYS]
    plans = PlanFile(
        artifact_id=artifact.id.hex(),
        options=tuple(options),
        expected={"uplink_bps": 20e6, "rtt_s": 2 * DELAY_S},
    )
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    path.write_text(plans.model_dump_json())
    return path


def agent_words(artifact: Path, url: str, plan: Path, *more: object) -> tuple[object, ...]:
    return (
        "agent", "--artifact", artifact, "--source", "-", "--cloud", url, "--plan", plan,
        "--threads", 1, "--slowdown", SLOWDOWN, "--deadline-s", DEADLINE_S, "--log-level", "INFO",
        *more,
    )  # fmt: skip


class Feeding:
    """An agent that gets a picture every 200 ms."""

    def __init__(self, agent: Any, pictures: Path) -> None:
        self.agent = agent
        self._pictures = sorted(pictures.iterdir())
        self._said: list[Path] = []
        self._heard: list[Line] = []

    def feed(self, seconds: float) -> None:
        """Whatever it does."""
        for _ in range(round(seconds / PERIOD_S)):
            started = time.perf_counter()
            self._say()
            time.sleep(max(0.0, started + PERIOD_S - time.perf_counter()))

    def feed_until(self, cuts: Sequence[str], most: int) -> int:
        """Wait for each answer, until three in a row came by these cuts; return their number.

        A machine that stands still for a while delays this and changes nothing.
        """
        for number in range(1, most + 1):
            started = time.perf_counter()
            self._say()
            self._heard.append(self.agent.hear())
            latest = [line["plan"]["cut"] for line in self._heard[-3:] if not line["fallback"]]
            if number >= 3 and len(latest) == 3 and set(latest) <= set(cuts):
                return number
            time.sleep(max(0.0, started + PERIOD_S - time.perf_counter()))
        seen = [line["plan"] for line in self._heard]
        raise AssertionError(f"no {cuts} in {most}: {seen}; {self.agent.log()}")

    def _say(self) -> None:
        self._said.append(self._pictures[len(self._said) % len(self._pictures)])
        self.agent.say(str(self._said[-1]))

    def finish(self) -> list[Line]:
        """End the source; check that each picture got exactly one answer, and the right one."""
        self.agent.say_no_more()
        lines: list[Line] = self._heard + self.agent.hear_rest()
        assert self.agent.end() == 0, self.agent.log()
        assert [Path(line["id"]).name for line in lines] == [path.name for path in self._said]
        assert len({line["request_id"] for line in lines}) == len(lines)
        for line in lines:
            name = Path(line["id"]).name
            assert line["error"] is None
            assert line["labels"][0]["name"] == LABELS.get(name, line["labels"][0]["name"])
            assert len(line["labels"]) == 5
        assert "Traceback" not in self.agent.log()
        return lines


def logged(agent: Any, message: str) -> list[Line]:
    lines = [json.loads(line) for line in agent.log().splitlines()]
    return [line for line in lines if line["message"] == message]


def waited_s(line: Line) -> float:
    """What an answer took beyond computing here, where a pause of the machine is stretched too."""
    local = ("picture", "normalise", "head", "encode", "edge_tail")
    return float(line["total_s"]) - sum(line["stages_s"].get(stage, 0.0) for stage in local)


def edge_only_s(plan_file: Path) -> float:
    options = json.loads(plan_file.read_text())["options"]
    return float(next(one["edge_s"] for one in options if one["codec"] == "none"))


def test_the_plan_follows_a_link_that_steps_and_stops_and_no_input_is_lost(
    start: Start, cloud: Any, lite0_artifact: Path, pictures: Path, plan_file: Path
) -> None:
    host, _, port = cloud.url.removeprefix("http://").rpartition(":")
    slow_link = ("output", "block11")
    steps = (
        (20e6, ("input",)), (0.3e6, slow_link), (20e6, ("input",)), (0.0, ("output",)),
        (20e6, ("input",)),
    )  # fmt: skip
    with Link((host, int(port)), LinkSettings(steps[0][0], DELAY_S)) as link:
        url = f"http://{link.address[0]}:{link.address[1]}"
        feeding = Feeding(start(*agent_words(lite0_artifact, url, plan_file)), pictures)
        taken = []
        for rate_bps, cuts in steps:
            link.set_rate(rate_bps)
            taken.append(feeding.feed_until(cuts, FOLLOWS))
        lines = feeding.finish()
    switches = logged(feeding.agent, "plan changed")
    assert 4 <= len(switches) <= 12
    fields = {"before", "after", "before_s", "after_s", "uplink_bps", "rtt_s", "edge_load"}
    assert all(fields <= set(switch) for switch in switches)
    (summary,) = logged(feeding.agent, "plans in total")
    assert summary["switches"] == len(switches)
    assert sum(summary["requests"].values()) == len(lines) == sum(taken)


@pytest.mark.parametrize("way", ["kill", "hang"])
def test_a_cloud_that_goes_costs_one_short_wait_and_is_found_again(
    start: Start, cloud: Any, lite0_artifact: Path, pictures: Path, plan_file: Path, way: str
) -> None:
    agent = start(*agent_words(lite0_artifact, cloud.url, plan_file))
    feeding = Feeding(agent, pictures)
    feeding.agent.say(str(pictures / "coffee.jpg"))
    feeding.agent.hear()
    feeding.feed(2.0)
    cloud.kill() if way == "kill" else cloud.hang()
    feeding.feed(4.0)
    cloud.come_back() if way == "kill" else cloud.go_on()
    feeding.feed(8.0)
    lines = feeding.finish()
    gone = lines[13:21]  # an agent on a busy machine may lag by a second
    assert {line["answered_by"] for line in gone} == {"edge"}
    assert sum(line["fallback"] is not None for line in gone) <= 2
    assert {line["answered_by"] for line in lines[-5:]} == {"cloud"}, agent.log()
    assert max(map(waited_s, lines)) + edge_only_s(plan_file) <= DEADLINE_S
    assert [switch["reason"] for switch in logged(agent, "plan changed")][-1] in (
        "recovery", "probe", "gain",
    )  # fmt: skip
