"""The end-to-end comparison: its arms, its figures, its page, and one small run of all of it."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from planned import EDGE, JPEG, SPLIT, decide_among, made_up_profile, offer

from splitserve.artifact import Artifact, load_artifact
from splitserve.bench.e2e import cells, flows
from splitserve.bench.e2e.arms import ADAPTIVE, Arm, choose_arms, plan_file
from splitserve.bench.e2e.figures import Setting, arm_result, compare, summarise
from splitserve.bench.e2e.flows import as_throughput, beside, best_flow, crossing_bps
from splitserve.bench.e2e.prepare import Place, Wish, classes, halves, make_sheet
from splitserve.bench.e2e.report import cards, write_report
from splitserve.bench.e2e.result import Cell, Flow, Ratio, Result
from splitserve.bench.measure import slowdown_of
from splitserve.cli import main
from splitserve.errors import UsageError
from splitserve.picture import list_pictures
from splitserve.plan import Offer
from splitserve.plans import Link, latency_s, throughput

LINK = Link(uplink_bps=2e6, rtt_s=0.02)
ARMS = [
    Arm("edge-only", "edge", EDGE),
    Arm("cloud jpeg", "cloud", JPEG),
    Arm("split", "split", SPLIT),
    Arm(ADAPTIVE, ADAPTIVE),
]
COUNT = 12


@pytest.fixture
def artifact(calibrated_artifact: Path) -> Artifact:
    return load_artifact(calibrated_artifact)


def answers(total_s: float, best: int = 1, slowdown: float = 4.0) -> dict[int, dict[str, object]]:
    """One answer a turn, the total growing by a millisecond each."""
    return {
        turn: {
            "total_s": total_s + turn / 1e3,
            "bytes_up": 100 + turn,
            "labels": [{"index": best}],
            "fallback": "late" if turn == 3 else None,
            "stages_s": {"head": 0.5 * slowdown, "network": 0.1},
            "native_s": 0.5,
        }
        for turn in range(COUNT)
    }


def made_up_cell(seconds: tuple[float, float, float, float], artifact: Artifact) -> Cell:
    """Edge, upload, split and adaptive with these seconds."""
    decision = decide_among([EDGE, JPEG, SPLIT], LINK, artifact.manifest)
    setting = Setting("a link", 4.0, LINK, 0.02, True, "split", decision.here)
    seen = {arm.name: answers(total) for arm, total in zip(ARMS, seconds, strict=True)}
    wanted = [1] * COUNT
    rows = [arm_result(arm, seen[arm.name], wanted, LINK) for arm in ARMS]
    return compare(setting, rows, seen)


def test_an_arm_has_its_median_its_agreement_and_its_error():
    row = arm_result(ARMS[2], answers(0.1), [1] * 6 + [2] * 6, LINK)
    assert row.p50_s == pytest.approx(0.1055)
    assert row.agree == 0.5
    assert row.fallbacks == 1
    assert row.predicted_s == latency_s(SPLIT.option, LINK)
    assert row.error == pytest.approx(row.predicted_s / 0.1055 - 1)
    assert row.stages_s == {"head": 2.0, "network": 0.1}
    assert slowdown_of(answers(1.0)[0]) == pytest.approx(4)


def test_the_adaptive_arm_has_no_prediction():
    assert arm_result(ARMS[3], answers(0.1), [1] * COUNT, LINK).error is None


def test_regret_and_gain_are_those_of_the_medians(artifact: Artifact):
    cell = made_up_cell((0.2, 0.1945, 0.0945, 0.1), artifact)
    assert (cell.planner, cell.best) == ("split", "split")
    assert cell.regret.value == 0
    assert cell.extreme_regret.value == pytest.approx(0.1 / 0.2 - 1)
    assert cell.adaptive_regret.value == pytest.approx(0.1055 / 0.1 - 1)
    assert cell.gain
    assert (cell.gain.split, cell.gain.extreme) == ("split", "cloud jpeg")
    assert cell.gain.ratio.value == pytest.approx(2)
    assert cell.gain.reached == pytest.approx(2 / cell.gain.bound)


def test_a_plan_that_is_not_the_best_has_regret(artifact: Artifact):
    cell = made_up_cell((0.0945, 0.3, 0.1445, 0.1), artifact)
    assert cell.best == "edge-only"
    assert cell.regret.value == pytest.approx(0.5)
    assert summarise([cell]).within_regret == 0


def test_an_arm_that_sat_out_turns_is_compared_over_the_others(artifact: Artifact):
    decision = decide_among([EDGE, JPEG, SPLIT], LINK, artifact.manifest)
    setting = Setting("a link", 4.0, LINK, 0.02, False, "split", decision.here)
    seen = {arm.name: answers(0.1) for arm in ARMS}
    seen["cloud jpeg"] = {turn: seen["cloud jpeg"][turn] for turn in (0, 4, 8)}
    rows = [arm_result(arm, seen[arm.name], [1] * COUNT, LINK) for arm in ARMS]
    assert compare(setting, rows, seen).extreme_regret.value == pytest.approx(0, abs=1e-9)


def test_each_format_and_cut_is_there_once_with_its_fewest_bytes(artifact: Artifact):
    dear = offer("split dear", 1, 9_000, 0.008, 0.030)
    raw = offer("cloud affine-u8", 0, 150_000, 0.003, 0.031)
    offers = [EDGE, _upload(JPEG, "jpeg"), _upload(raw, "affine-u8"), dear, SPLIT]
    decision = decide_among(offers, LINK, artifact.manifest)
    arms = choose_arms(offers, [decision], ["cut1"])
    assert [arm.name for arm in arms] == [
        "edge-only", "cloud jpeg", "cloud affine-u8", "split", ADAPTIVE,
    ]  # fmt: skip
    assert [arm.role for arm in arms] == ["edge", "cloud", "cloud", "split", ADAPTIVE]


def _upload(one: Offer, codec: str) -> Offer:
    return replace(one, option=one.option.model_copy(update={"codec": codec}))


def test_flags_run_the_plan(artifact: Artifact):
    assert ARMS[0].flags(Path("p")) == ["--cut", "output"]
    rated = SPLIT.option.model_copy(update={"quality": 99.5})
    arm = Arm("split", "split", replace(SPLIT, option=rated))
    assert arm.flags(Path("p")) == ["--cut", "cut1", "--codec", "x", "--quality", "99.5"]
    assert ARMS[3].flags(Path("p")) == ["--plan", "p"]
    plans = plan_file(ARMS, [LINK], artifact)
    assert [option.name for option in plans.options] == ["edge-only", "split", "cloud jpeg"]
    assert plans.expected == LINK


def test_pictures_are_halved_and_written_as_frames(pictures: Path, tmp_path: Path):
    first, second = halves(pictures, tmp_path, 0, 40)
    names = [{path.stem for path in list_pictures(half)} for half in (first, second)]
    assert not names[0] & names[1]
    assert names[0] | names[1] == {path.stem for path in list_pictures(pictures)}
    assert {path.suffix for path in list_pictures(first)} == {".bmp"}


def test_files_are_taken_as_they_are(pictures: Path, tmp_path: Path):
    _, second = halves(pictures, tmp_path, 0, None)
    path = list_pictures(second)[0]
    assert path.read_bytes() == (pictures / path.name).read_bytes()


def test_a_sheet_plans_for_every_link_and_for_the_crossing(artifact: Artifact):
    edge, cloud = made_up_profile(artifact, 0.01, 16), made_up_profile(artifact, 0.01)
    wish = Wish([Place(1e6, 0.05), Place(20e6, 0.02)], [0.004], [], 90, 0)
    sheet = make_sheet(artifact, edge, cloud, wish)
    assert [setting.is_crossing for setting in sheet.settings] == [False, False, True]
    assert sheet.settings[0].link.rtt_s == pytest.approx(0.05 + 8 * edge.reply_bytes / 1e6)
    assert sheet.settings[2].name.startswith("B* ")
    worths = [setting.worth.gain for setting in sheet.settings if setting.worth]
    assert max(worths) == worths[2]
    assert set(sheet.cuts) <= set(artifact.manifest.positions)
    upload = sheet.cheapest("cloud")
    assert upload
    assert upload.option.cut == "input"


def test_flows_cross_where_upload_and_edge_take_the_same_time():
    rate = crossing_bps(EDGE.option, JPEG.option)
    assert 8 * JPEG.option.bytes_up / rate == pytest.approx(EDGE.option.edge_s)
    link = Link(uplink_bps=rate)
    assert best_flow([EDGE, JPEG, SPLIT], link) is SPLIT
    assert best_flow([EDGE, JPEG], link) is None
    together = beside(EDGE.option, JPEG.option, link)
    one = throughput(JPEG.option, link)
    assert one < together < one + throughput(EDGE.option, link)


def test_a_flows_gain_is_over_the_better_extreme():
    seen = [
        Flow("edge-only", "edge", 4.0, (4.0, 4.0), 4.0),
        Flow("cloud", "cloud", 5.0, (5.0, 4.0), 5.0),
        Flow("split", "split", 10.0, (10.0, 10.0), 9.0),
    ]
    got = as_throughput(16, LINK, seen, 8.0)
    assert got.gain == Ratio(2.0, 2.0, 2.5)


def test_the_page_needs_nothing_else(artifact: Artifact, tmp_path: Path):
    cell = made_up_cell((0.2, 0.19, 0.09, 0.1), artifact)
    seen = [Flow("edge-only", "edge", 4.0, (4.0,), 4.0), Flow("split", "split", 9.0, (9.0,), 9.0)]
    result = Result(
        model="a <model>", artifact_id="0" * 32,
        machine={"processor": "p", "cores": 2, "system": "s"}, requests=COUNT, warm_up=0,
        floor=98.0, pictures={"profiled": 2, "measured": 2}, are_files=False, cells=(cell,),
        throughput=(as_throughput(4, LINK, seen, 5.0),), summary=summarise([cell]),
        notes=("a note",),
    )  # fmt: skip
    page = tmp_path / "deep" / "report.html"
    write_report(result, page)
    text = page.read_text(encoding="utf-8")
    assert "a &lt;model&gt;" in text
    assert "a note" in text
    assert text.count("<svg") == 5
    assert not re.search(r"<(script|link|img|iframe)\b", text)
    assert not re.search(r"(src|href)=\"(?!#)", text)
    assert len(cards(result)) == 6


@pytest.mark.parametrize(
    ("links", "reason"),
    [("5.85", "no `Mbit/s/ms`"), ("x/20", "no `Mbit/s/ms`"), ("0/20", "out of range")],
)
def test_a_link_that_is_none_is_refused(
    links: str, reason: str, calibrated_artifact: Path, pictures: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = ["bench", "e2e", str(calibrated_artifact), "--images", str(pictures)]
    assert main([*words, "--links", links, "-o", str(tmp_path)]) == 2
    assert reason in capsys.readouterr().err


def test_too_few_pictures_are_refused(pictures: Path, tmp_path: Path):
    path = list_pictures(pictures)[0]
    few = tmp_path / "few"
    few.mkdir()
    (few / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UsageError, match="1 pictures; at least 4"):
        halves(few, tmp_path, 0, None)


def test_classes_are_those_of_the_whole_model(artifact: Artifact, pictures: Path):
    found = classes(artifact, list_pictures(pictures))
    assert len(found) == len(list_pictures(pictures))
    assert all(0 <= index < 10 for _, index in found)


def test_a_small_comparison_runs_from_profile_to_page(
    calibrated_artifact: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for module in (cells, flows):  # no figure is used, so a busy machine does not matter
        monkeypatch.setattr(module, "self_test", lambda settings: settings)
    words = ["bench", "e2e", str(calibrated_artifact), "--images", str(pictures), "--json"]
    few = ["--links", "20/4", "--crossings", "4", "--slowdowns", "4", "--requests", "8"]
    cut = load_artifact(calibrated_artifact).manifest.cuts[0].name
    quick = ["--warm-up", "1", "--rounds", "1", "--agreement", "0", "--cuts", cut]
    assert main([*words, *few, *quick, "-o", str(tmp_path)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "result.json").read_text())
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert not result["cells"][0]["is_crossing"]
    for cell in result["cells"]:
        roles = [arm["role"] for arm in cell["arms"]]
        assert roles.count("edge") == roles.count("adaptive") == 1
        assert {"cloud", "split"} <= set(roles)
        assert {arm["requests"] for arm in cell["arms"]} <= {2, 8}
        assert cell["planner"] in {arm["name"] for arm in cell["arms"]}
    assert {flow["role"] for flow in result["throughput"][0]["flows"]} == {"edge", "cloud", "split"}
