"""A replay's figures by hand, its picture, and whole small replays with real processes."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from splitserve.artifact import load_artifact
from splitserve.bench.flow import ANSWER_S, Asked, Flow
from splitserve.bench.replay import Options, Static, choose_arms, read_course, read_log
from splitserve.bench.replay_figures import ADAPTIVE, Run, figures, segments_of
from splitserve.bench.replay_plot import draw_replay
from splitserve.cli import main
from splitserve.errors import MeasurementError, UsageError
from splitserve.plan.trace import Change
from splitserve.plans import PlanFile, PlanOption

RATE_HZ = 5.0
TRACE = [Change(10, 20e6), Change(12, 0.0), Change(16, 20e6)]  # 10 + 20 + 20 requests
SEGMENTS = segments_of(TRACE)


def asked(number: int, latency_s: float | None, plan: str = "", fallback: str | None = None):
    by = "nobody" if latency_s is None else "edge" if fallback else "cloud"
    return Asked(number / RATE_HZ, latency_s, plan, by, fallback, 0.1, 0.01)


def run(name: str, latencies: Sequence[float | None], plans: Sequence[str] | None = None) -> Run:
    plans = plans or [""] * len(latencies)
    rows = [asked(n, *row) for n, row in enumerate(zip(latencies, plans, strict=True))]
    return Run(name, Flow(tuple(rows), 0.0, 0.001))


EDGE = run("edge-only", [0.15] * 50)
UPLOAD = run("upload", [0.05] * 10 + [1.0] * 20 + [0.05] * 20)
MINE = run(
    ADAPTIVE,
    [0.05] * 10 + [0.6] + [0.15] * 19 + [0.15] * 3 + [0.05] * 17,
    ["upload"] * 11 + ["edge-only"] * 19 + ["upload"] + ["edge-only"] * 2 + ["upload"] * 17,
)


def test_segments_begin_at_zero_and_the_last_is_as_long_as_the_one_before():
    assert [(one.start_s, one.end_s, one.rate_bps) for one in SEGMENTS] == [
        (0, 2, 20e6), (2, 6, 0), (6, 10, 20e6),
    ]  # fmt: skip


def test_totals_ratios_and_settling_are_those_counted_by_hand():
    result = figures([EDGE, UPLOAD, MINE], SEGMENTS)
    mine_s = 10 * 0.05 + 0.6 + 22 * 0.15 + 17 * 0.05
    assert result["best_static"] == "edge-only"
    assert result["to_best_static"]["ratio"] == pytest.approx(mine_s / 7.5)
    assert result["clairvoyant"]["plans"] == ["upload", "edge-only", "upload"]
    assert result["clairvoyant"]["total_s"] == pytest.approx(30 * 0.05 + 20 * 0.15)
    assert result["to_clairvoyant"]["ratio"] == pytest.approx(mine_s / 4.5)
    assert result["ideal"]["ratio"] == pytest.approx(mine_s / 4.5)
    for name in ("to_best_static", "to_clairvoyant"):
        assert result[name]["low"] < result[name]["ratio"] < result[name]["high"]
    assert [step["requests"] for step in result["steps"]] == [1, 3]
    assert [step["good"] for step in result["steps"]] == [["edge-only"], ["upload"]]
    means = [part["mean_s"] for part in result["arms"][2]["by_segment"]]
    assert means == pytest.approx([0.05, (0.6 + 19 * 0.15) / 20, (3 * 0.15 + 17 * 0.05) / 20])
    met = {target["what"]: target["is_met"] for target in result["targets"]}
    assert list(met.values()) == [True, True, False, False]


def test_a_request_that_was_lost_counts_as_long_as_it_was_waited_for():
    broken = run(ADAPTIVE, [0.05] * 49 + [None], ["upload"] * 50)
    result = figures([EDGE, broken], SEGMENTS)
    assert result["arms"][1]["lost"] == 1
    assert result["targets"][0] == {
        "what": "requests lost", "seen": 1, "limit": 0, "is_met": False,
    }  # fmt: skip
    assert result["arms"][1]["total_s"] == pytest.approx(49 * 0.05 + ANSWER_S)


def test_a_queue_that_drains_does_not_make_the_best_plan_a_bad_one():
    drained = run("upload", [0.05] * 10 + [1.0] * 20 + [3.0] * 8 + [0.05] * 12)
    result = figures([EDGE, drained, MINE], SEGMENTS)
    assert result["clairvoyant"]["plans"][2] == "edge-only"
    assert result["ideal"]["plans"][2] == "upload"
    assert result["steps"][1]["good"] == ["upload"]


def test_a_plan_that_never_comes_never_settles():
    stuck = run(ADAPTIVE, [0.1] * 50, ["upload"] * 50)
    result = figures([EDGE, UPLOAD, stuck], SEGMENTS)
    assert result["steps"][0]["requests"] is None
    assert result["targets"][-1]["seen"] is None
    assert not result["targets"][-1]["is_met"]


def test_an_answer_that_fell_back_is_not_settled():
    rows = list(MINE.flow.asked)
    for number in range(10, 30):
        rows[number] = asked(number, 0.15, "edge-only", "the cloud is away")
    result = figures([EDGE, UPLOAD, Run(ADAPTIVE, Flow(tuple(rows), 0.0, 0.0))], SEGMENTS)
    assert result["steps"][0]["requests"] is None


def test_figures_need_both_kinds_of_arms():
    for runs in ([EDGE], [MINE]):
        with pytest.raises(MeasurementError, match="adaptive"):
            figures(runs, SEGMENTS)


def test_what_the_agent_says_of_itself_is_taken_from_its_log():
    total = {"message": "plans in total", "switches": 3, "probes": 2, "trials": 1, "overdue": 1}
    log = read_log(f"no json\n[1]\n{json.dumps({'message': 'ready'})}\n{json.dumps(total)}\n")
    result = figures([EDGE, Run(ADAPTIVE, MINE.flow, tuple(log))], SEGMENTS)
    assert result["agent"]["switches"] == 3


def test_the_picture_is_drawn(tmp_path: Path):
    rows = list(MINE.flow.asked)
    rows[10] = asked(10, 0.6, "upload", "overdue")
    rows[49] = asked(49, None)
    runs = [EDGE, UPLOAD, Run(ADAPTIVE, Flow(tuple(rows), 0.0, 0.0))]
    draw_replay(runs, figures(runs, SEGMENTS), tmp_path / "new" / "replay.png")
    with Image.open(tmp_path / "new" / "replay.png") as image:
        assert image.size[0] > 1000
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 50


@pytest.fixture
def plan_file(tiny_artifact: Path, tmp_path: Path) -> Callable[..., Path]:
    """A plan file for the tiny artifact with made-up times."""

    def write(**changes: str) -> Path:
        artifact = load_artifact(tiny_artifact)
        cut = artifact.manifest.cuts[0].name
        rows = (
            ("edge-only", "output", "none", None, 0.0, 0.012, 0.0),
            ("split", cut, "affine-u8", None, 2200.0, 0.008, 0.002),
            ("upload", "input", "jpeg", 95.0, 1500.0, 0.006, 0.003),
        )
        options = [
            PlanOption(
                name=name, cut=cut, codec=codec, quality=quality, bytes_up=size, edge_s=edge_s,
                edge_p90_s=edge_s, cloud_s=cloud_s, cloud_p90_s=cloud_s,
            )
            for name, cut, codec, quality, size, edge_s, cloud_s in rows
        ]  # fmt: skip
        plans = PlanFile(artifact_id=changes.get("artifact_id", artifact.id.hex()), options=options)
        path = tmp_path / "plan.json"
        path.write_text(plans.model_dump_json())
        return path

    return write


def options(tiny_artifact: Path, plan: Path, pictures: Path, **more: object) -> Options:
    return Options(artifact=tiny_artifact, plan=plan, images=pictures, **more)


def test_every_plan_of_the_file_is_an_arm(plan_file, tiny_artifact: Path, pictures: Path):
    given = options(tiny_artifact, plan_file(), pictures)
    arms = choose_arms(given, PlanFile.model_validate_json(given.plan.read_text()))
    assert [arm.name for arm in arms] == ["edge-only", "split", "upload", ADAPTIVE]
    assert arms[2].flags == ("--cut", "input", "--codec", "jpeg", "--quality", "95.0")
    assert arms[3].flags == ("--plan", str(given.plan))


def test_static_plans_may_be_named(plan_file, tiny_artifact: Path, pictures: Path):
    given = options(
        tiny_artifact, plan_file(), pictures, static="input:jpeg:95,input:webp:80,input"
    )
    assert given.static == [
        Static("input", "jpeg", 95.0), Static("input", "webp", 80.0), Static("input"),
    ]  # fmt: skip
    arms = choose_arms(given, PlanFile.model_validate_json(given.plan.read_text()))
    assert [arm.name for arm in arms] == [
        "edge-only", "upload", "input webp 80", "input", ADAPTIVE,
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["input:jpeg:good", ":jpeg", "a:b:1:2"])
def test_what_is_no_static_plan_is_refused(plan_file, tiny_artifact, pictures, text: str, capsys):
    words = ["--plan", str(plan_file()), "--images", str(pictures), "--static", text]
    assert main(["bench", "replay", str(tiny_artifact), *words]) == 2
    assert "cut:codec:quality" in capsys.readouterr().err


def test_plans_of_another_artifact_are_refused(plan_file, tiny_artifact, pictures):
    given = options(tiny_artifact, plan_file(artifact_id="0" * 32), pictures)
    with pytest.raises(UsageError, match="made for artifact 0000"):
        choose_arms(given, PlanFile.model_validate_json(given.plan.read_text()))


def test_an_empty_folder_is_a_wrong_call(plan_file, tiny_artifact, tmp_path: Path):
    with pytest.raises(UsageError, match="files here"):
        read_course(options(tiny_artifact, plan_file(), tmp_path))


def test_the_default_trace_is_the_staircase(plan_file, tiny_artifact, pictures):
    course = read_course(options(tiny_artifact, plan_file(), pictures))
    assert [one.rate_bps for one in course.segments] == [20e6, 1e6, 5e6, 0, 20e6]
    assert (course.segments[-1].end_s, course.count) == (150, 750)


def test_a_short_replay_answers_every_request(
    plan_file, tiny_artifact: Path, pictures: Path, tmp_path: Path, capsys
):
    trace = tmp_path / "trace.csv"
    trace.write_text("0,20e6\n1,1e6\n2,20e6\n")
    status = main(
        [
            "bench", "replay", str(tiny_artifact), "--plan", str(plan_file()), "--json",
            "--images", str(pictures), "--trace", str(trace), "--slowdown", "1", "--rate", "10",
            "--static", "input:jpeg:95", "--plot", str(tmp_path / "replay.png"),
        ]
    )  # fmt: skip
    result = json.loads(capsys.readouterr().out)
    assert status == (0 if all(one["is_met"] for one in result["targets"]) else 3)
    assert [arm["name"] for arm in result["arms"]] == ["edge-only", "upload", ADAPTIVE]
    assert {(arm["requests"], arm["lost"]) for arm in result["arms"]} == {(30, 0)}
    rows = result["requests"]
    assert {row[3] for row in rows["edge-only"]} == {"edge"}
    assert {row[3] for row in rows["upload"]} == {"cloud"}
    assert {row[2] for row in rows[ADAPTIVE]} <= {"edge-only", "split", "upload"}
    assert [row[0] for row in rows["upload"]] == pytest.approx([n / 10 for n in range(30)])
    assert (tmp_path / "replay.png").stat().st_size > 10_000
    assert sum(result["agent"]["requests"].values()) == 35  # five to warm up
