"""`splitserve serve` and `splitserve agent` as processes: whatever the cloud does, answers come."""

import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

CUT = "block5"
GAP_S = 0.02
DEADLINE_S = 2.0
LONGEST_S = 40.0
RECOVERY_S = 2.0
JITTER = 1.2  # of edge_agent.fallback, upwards
LABELS = {"coffee.png": "espresso", "camera.png": "tripod"}

Line = dict[str, Any]
Start = Callable[..., Any]


class Cloud(Protocol):
    """See conftest.py."""

    url: str
    running: Any

    def come_back(self) -> object: ...
    def kill(self) -> None: ...
    def hang(self) -> None: ...
    def go_on(self) -> None: ...


def agent_words(artifact: Path, cloud: Cloud, source: object, *more: object) -> tuple[object, ...]:
    return (
        "agent", "--artifact", artifact, "--source", source, "--cloud", cloud.url, "--cut", CUT,
        "--threads", 1, *more,
    )  # fmt: skip


def check_labels(lines: list[Line]) -> None:
    for line in lines:
        name = Path(line["id"]).name
        assert line["error"] is None
        assert len(line["labels"]) == 5
        if name in LABELS:
            assert line["labels"][0]["name"] == LABELS[name]


@pytest.mark.parametrize("transport", ["stream", "http"])
def test_a_folder_is_answered_by_the_cloud(
    start: Start, cloud: Cloud, lite0_artifact: Path, pictures: Path, transport: str
) -> None:
    words = agent_words(lite0_artifact, cloud, pictures, "--transport", transport)
    agent = start(*words, "--deadline-s", 20)
    lines = agent.hear_rest()
    assert agent.end() == 0
    assert [line["id"] for line in lines] == sorted(path.name for path in pictures.iterdir())
    assert {line["answered_by"] for line in lines} == {"cloud"}
    assert {line["fallback"] for line in lines} == {None}
    assert {line["plan"]["cut"] for line in lines} == {CUT}
    assert all(line["bytes_up"] > 1000 for line in lines)
    check_labels(lines)


class Feeding:
    """An agent that gets one path at a time, and the accounts of what it was given and said."""

    def __init__(self, agent: Any, pictures: list[Path]) -> None:
        self._agent = agent
        self._pictures = pictures
        self.said_at: list[float] = []
        self.lines: list[Line] = []

    def feed(self, meanwhile: Callable[[], None] | None = None) -> Line:
        """Name one picture, wait for its answer, then for the gap."""
        self.said_at.append(time.perf_counter())
        self._agent.say(str(self._pictures[len(self.lines) % len(self._pictures)]))
        if meanwhile is not None:
            time.sleep(GAP_S)
            meanwhile()
        self.lines.append(self._agent.hear(LONGEST_S))
        time.sleep(max(0.0, self.said_at[-1] + GAP_S - time.perf_counter()))
        return self.lines[-1]

    def feed_until(self, answered_by: str) -> float:
        """Feed until an answer comes from there; return the time of its arrival."""
        until = time.perf_counter() + LONGEST_S
        while time.perf_counter() < until:
            line = self.feed()
            if line["answered_by"] == answered_by:
                return float(line["heard_at"])
        raise AssertionError(f"no answer by the {answered_by} in {LONGEST_S} s")

    def check(self) -> None:
        """Check that each picture got exactly one answer, its own, in time."""
        self._agent.say_no_more()
        assert self._agent.hear_rest() == []
        assert self._agent.end() == 0
        names = [self._pictures[n % len(self._pictures)].name for n in range(len(self.lines))]
        assert [Path(line["id"]).name for line in self.lines] == names
        assert len({line["request_id"] for line in self.lines}) == len(self.lines)
        check_labels(self.lines)
        for said_at, line in zip(self.said_at, self.lines, strict=True):
            assert line["total_s"] <= DEADLINE_S
            assert line["heard_at"] - said_at <= DEADLINE_S
            assert (line["answered_by"] == "edge") == (line["fallback"] is not None)


@pytest.fixture
def feeding(start: Start, cloud: Cloud, lite0_artifact: Path, pictures: Path) -> Feeding:
    """An agent fed by hand that the cloud answers."""
    agent = start(*agent_words(lite0_artifact, cloud, "-", "--deadline-s", DEADLINE_S))
    agent.say(str(pictures / "coffee.png"))
    assert agent.hear()["answered_by"] == "cloud"
    return Feeding(agent, sorted(pictures.iterdir()))


def check_recovery(away_at: float, ready_at: float, back_at: float) -> None:
    """Check that the cloud was asked soon after it was there again.

    The pauses double, so that none is longer than the outage before it, but for jitter.
    """
    assert back_at - ready_at <= max(RECOVERY_S, JITTER * (ready_at - away_at)) + GAP_S + 1


def test_a_cloud_that_is_killed_in_mid_stream_costs_no_answer(
    cloud: Cloud, feeding: Feeding
) -> None:
    for _ in range(15):
        assert feeding.feed()["answered_by"] == "cloud"
    feeding.feed(meanwhile=cloud.kill)
    away_at = time.perf_counter()
    gone = [feeding.feed() for _ in range(30)]
    assert {line["answered_by"] for line in gone} == {"edge"}
    assert all(line["fallback"] for line in gone)
    cloud.come_back()
    ready_at = time.perf_counter()
    back_at = feeding.feed_until("cloud")
    check_recovery(away_at, ready_at, back_at)
    assert {feeding.feed()["answered_by"] for _ in range(15)} == {"cloud"}
    assert len(feeding.lines) >= 60
    feeding.check()


def test_a_cloud_that_hangs_with_its_connections_open_costs_no_answer(
    cloud: Cloud, feeding: Feeding
) -> None:
    for _ in range(15):
        assert feeding.feed()["answered_by"] == "cloud"
    feeding.feed(meanwhile=cloud.hang)
    away_at = time.perf_counter()
    gone = [feeding.feed() for _ in range(30)]
    assert {line["answered_by"] for line in gone} == {"edge"}
    reasons = Counter(line["fallback"].partition(" within")[0] for line in gone)
    assert set(reasons) == {"no answer", "the cloud is away"}
    assert reasons["no answer"] <= 3
    cloud.go_on()
    ready_at = time.perf_counter()
    back_at = feeding.feed_until("cloud")
    check_recovery(away_at, ready_at, back_at)
    assert {feeding.feed()["answered_by"] for _ in range(15)} == {"cloud"}
    feeding.check()


def test_a_cloud_killed_while_many_are_in_flight_costs_no_answer(
    start: Start, cloud: Cloud, lite0_artifact: Path, pictures: Path
) -> None:
    words = agent_words(lite0_artifact, cloud, "-", "--in-flight", 4, "--deadline-s", 20)
    agent = start(*words)
    count = 60
    for number in range(count):
        agent.say(str(sorted(pictures.iterdir())[number % 5]))
        if number == count // 3:
            lines = [agent.hear()]
            cloud.kill()
        time.sleep(GAP_S)
    agent.say_no_more()
    lines += agent.hear_rest()
    assert agent.end() == 0
    names = [str(sorted(pictures.iterdir())[number % 5]) for number in range(count)]
    assert Counter(line["id"] for line in lines) == Counter(names)
    assert {line["answered_by"] for line in lines} == {"cloud", "edge"}
    assert all(line["fallback"] for line in lines if line["answered_by"] == "edge")
    check_labels(lines)


@pytest.mark.parametrize("transport", ["stream", "http"])
def test_a_cloud_that_hangs_with_many_in_flight_costs_no_deadline(
    start: Start, cloud: Cloud, lite0_artifact: Path, pictures: Path, transport: str
) -> None:
    deadline_s, count = 1.5, 60
    words = ("--in-flight", 8, "--deadline-s", deadline_s, "--transport", transport)
    agent = start(*agent_words(lite0_artifact, cloud, "-", *words))
    for number in range(count):
        agent.say(str(sorted(pictures.iterdir())[number % 5]))
        if number == count // 3:
            lines = [agent.hear()]
            cloud.hang()
        time.sleep(GAP_S)
    agent.say_no_more()
    lines += agent.hear_rest()
    cloud.go_on()
    assert agent.end() == 0
    assert len(lines) == count
    assert {line["answered_by"] for line in lines} == {"cloud", "edge"}
    assert max(line["total_s"] for line in lines) <= deadline_s
    check_labels(lines)


def test_a_cloud_with_another_artifact_refuses_and_the_edge_says_both_ids(
    start: Start, cloud: Cloud, lite0_artifact: Path, pictures: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(lite0_artifact, other)
    manifest = other / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    agent = start(*agent_words(other, cloud, pictures, "--deadline-s", 20))
    lines = agent.hear_rest()
    assert agent.end() == 0
    assert {line["answered_by"] for line in lines} == {"edge"}
    reason = lines[0]["fallback"]
    assert reason.startswith("UNKNOWN_ARTIFACT: ")
    ids = [word for word in reason.replace(",", " ").split() if len(word) == 32]
    assert len(set(ids)) == 2
    check_labels(lines)


def test_a_watched_folder_is_answered_until_sigterm(
    start: Start, cloud: Cloud, lite0_artifact: Path, pictures: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "inbox"
    folder.mkdir()
    agent = start(*agent_words(lite0_artifact, cloud, folder, "--watch", "--deadline-s", 20))
    lines = []
    for name in ("coffee.png", "camera.png"):
        shutil.copy(pictures / name, folder / name)
        lines.append(agent.hear())
    for number in range(5):
        shutil.copy(pictures / "chelsea.png", folder / f"{number}.png")
    lines += [agent.hear() for _ in range(5)]
    agent.process.send_signal(signal.SIGTERM)
    assert agent.hear_rest() == []
    assert agent.end() == 0
    assert [line["id"] for line in lines[:2]] == ["coffee.png", "camera.png"]
    assert sorted(line["id"] for line in lines[2:]) == [f"{number}.png" for number in range(5)]
    assert {line["answered_by"] for line in lines} == {"cloud"}
    check_labels(lines)
    assert "Traceback" not in agent.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_of_the_work_loses_no_line(
    start: Start, cloud: Cloud, lite0_artifact: Path, pictures: Path, number: signal.Signals
) -> None:
    agent = start(*agent_words(lite0_artifact, cloud, "-", "--in-flight", 3, "--deadline-s", 20))
    for _ in range(200):
        agent.say(str(pictures / "coffee.png"))
    lines = [agent.hear() for _ in range(5)]
    agent.process.send_signal(number)
    lines += agent.hear_rest()
    assert agent.end() == 0
    assert 5 <= len(lines) < 200
    assert {line["answered_by"] for line in lines} == {"cloud"}
    check_labels(lines)
    assert "Traceback" not in agent.log()


def test_an_input_nobody_could_answer_makes_the_status_1(
    start: Start, cloud: Cloud, lite0_artifact: Path, pictures: Path
) -> None:
    agent = start(*agent_words(lite0_artifact, cloud, "-", "--deadline-s", 20))
    agent.say(str(pictures / "gone.png"))
    assert agent.hear()["answered_by"] == "nobody"
    agent.say_no_more()
    assert agent.end() == 1
    assert "Traceback" not in agent.log()
