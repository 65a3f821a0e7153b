import io
import json

import pytest
from rich.console import Console

from splitserve.artifact import load_artifact
from splitserve.bench import demo
from splitserve.bench.demo_report import print_report
from splitserve.bench.measure import in_turn
from splitserve.bench.samples import SAMPLES, write_views
from splitserve.cli import main


def arm(name, cut, seconds, classes):
    made = demo.Arm(name, cut)
    made.answers = [
        {
            "total_s": value,
            "labels": [{"index": index, "name": str(index), "score": 0.5}],
            "bytes_up": 100,
            "fallback": None,
            "stages_s": {"head": value / 2, "network": value / 2},
            "native_s": value / 8,
        }
        for value, index in zip(seconds, classes, strict=True)
    ]
    return made


def test_arm_summary_counts_agreement_and_takes_medians():
    row = arm("a", "output", [0.1, 0.3, 0.2], [1, 2, 3]).summary([1, 2, 9])
    assert (row["agree"], row["requests"], row["p50_s"]) == (2, 3, 0.2)
    assert row["stages_s"] == {"head": 0.1, "network": 0.1}
    assert row["slowdown"] == 4


def test_demo_takes_the_last_three_cuts_with_work_left(lite0_artifact):
    manifest = load_artifact(lite0_artifact).manifest
    arms = demo.choose_arms(manifest, demo.Options())
    assert [one.cut for one in arms] == ["output", "input", "input", "block3", "block5", "block11"]


def test_every_arm_takes_its_turn_first():
    assert [in_turn(3, turn)[0] for turn in range(4)] == [0, 1, 2, 0]
    assert sorted(in_turn(3, 2)) == [0, 1, 2]


def test_views_differ_and_repeat_with_the_seed(tmp_path):
    first, again, other = (tmp_path / name for name in ("a", "b", "c"))
    for folder, seed in ((first, 0), (again, 0), (other, 1)):
        folder.mkdir()
        assert len(write_views(folder, rounds=2, seed=seed)) == 2 * len(SAMPLES)
    name = "001-coffee.bmp"
    assert (first / name).read_bytes() == (again / name).read_bytes()
    assert (first / name).read_bytes() != (other / name).read_bytes()
    assert (first / name).read_bytes() != (first / "000-coffee.bmp").read_bytes()


@pytest.mark.parametrize("winner", ["cloud, WebP", "split at block5"])
def test_report_names_the_winner_and_says_when_not_to_split(winner):
    rows = [
        arm(name, cut, [0.1 if name == winner else 0.2] * 3, [1, 1, 1]).summary([1, 1, 1])
        for name, cut in (
            ("edge only", "output"),
            ("cloud, WebP", "input"),
            ("split at block5", "block5"),
        )
    ]
    label = {"name": "espresso", "score": 0.9, "index": 1}
    result = {
        "link": {
            "rate_mbps": 1.0,
            "delay_ms": 5.0,
            "measured_rate_mbps": 1.0,
            "measured_round_trip_ms": 10.1,
        },
        "slowdown": 4.0,
        "pictures": [
            {
                "file": "coffee.png",
                "shows": "a cup of coffee",
                "is_right": {row["name"]: True for row in rows},
                "labels": {row["name"]: label for row in rows},
            }
        ],
        "arms": rows,
        "winner": winner,
        "rival": "edge only",
        "is_split": winner.startswith("split"),
        "gain": {"ratio": 2.0, "low": 1.9, "high": 2.1},
        "tied": [],
        "faster_but_below_floor": [] if winner == "cloud, WebP" else ["cloud, WebP"],
        "agreement_floor": 0.9,
    }
    stream = io.StringIO()
    print_report(result, Console(file=stream, width=100))
    text = " ".join(stream.getvalue().split())
    assert f"{winner} is the fastest on this link." in text
    assert "2.00 times as fast as edge only" in text
    assert "at least 90% of the pictures" in text
    assert ("Do not split" in text) == (winner == "cloud, WebP")
    is_below = winner != "cloud, WebP"
    assert ("cloud, WebP is faster but agrees on 3 of 3 only." in text) == is_below
    assert "3 of 3" in text
    assert "espresso 90%" in text


def test_demo_runs_end_to_end_and_labels_are_right(capsys, tmp_path):
    words = ["demo", "--rounds", "1", "--slowdown", "2", "--rate-mbps", "50", "--json"]
    assert main([*words, "--build", str(tmp_path / "build")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in result["arms"]] == [
        "edge only", "cloud, JPEG", "cloud, WebP",
        "split at block3", "split at block5", "split at block11",
    ]  # fmt: skip
    for picture in result["pictures"]:
        assert picture["is_right"]["edge only"], picture["labels"]["edge only"]
        assert picture["is_right"]["split at block5"], picture["labels"]["split at block5"]
    for row in result["arms"]:
        assert row["requests"] == len(SAMPLES)
    edge = result["arms"][0]
    assert (edge["agree"], edge["bytes_up"]) == (edge["requests"], 0)
    assert result["link"]["measured_rate_mbps"] == pytest.approx(50, rel=0.05)
