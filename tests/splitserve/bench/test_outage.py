"""What an outage cost, by hand, and one with real processes."""

import json
from pathlib import Path

import pytest

from splitserve.artifact import load_artifact
from splitserve.bench.flow import Asked, Flow
from splitserve.bench.outage import Disturbed, figures
from splitserve.cli import main
from splitserve.plans import PlanFile, PlanOption


def test_figures_of_an_outage_are_those_counted_by_hand():
    rows = [Asked(n / 5, 0.1, answered_by="cloud", cloud_s=0.01) for n in range(10)]
    rows += [Asked(2.0, 0.7, answered_by="edge", fallback="overdue")]
    rows += [Asked(2 + n / 5, 0.2, answered_by="edge") for n in range(1, 10)]
    rows += [Asked(4.0, 0.2, answered_by="edge"), Asked(4.2, 0.1, answered_by="cloud")]
    row = figures("silent", Disturbed(Flow(tuple(rows), 0.0, 0.0), 2.0, 4.0), 2.2)
    assert (row["lost"], row["disturbed"], row["by_the_cloud"]) == (0, 10, 0)
    assert row["p50_s"] == pytest.approx(0.2)
    assert 0.2 < row["p99_s"] <= 0.7
    assert row["answers_again_s"] == pytest.approx(0.3)
    assert row["cloud_slower"] is None
    assert row["is_met"]
    assert not figures("silent", Disturbed(Flow(tuple(rows), 0.0, 0.0), 2.0, 4.0), 0.3)["is_met"]


def test_a_lost_answer_or_a_cloud_that_stays_away_is_a_miss():
    known = [Asked(n / 5, 0.1, answered_by="cloud", cloud_s=0.01) for n in range(10)]
    gone = [Asked(2 + n / 5, 0.2, answered_by="edge") for n in range(10)]
    away = Disturbed(Flow((*known, *gone), 0.0, 0.0), 2.0, 3.0)
    assert figures("killed", away, 2.0)["answers_again_s"] is None
    assert not figures("killed", away, 2.0)["is_met"]
    lost = Disturbed(Flow((*known, Asked(2.0, None), *known[:1]), 0.0, 0.0), 1.9, 2.1)
    row = figures("killed", lost, 2.0)
    assert (row["lost"], row["p99_s"], row["is_met"]) == (1, None, False)


def test_a_slow_cloud_is_measured_by_its_own_seconds():
    known = [Asked(n / 5, 0.1, answered_by="cloud", cloud_s=0.01) for n in range(10)]
    slow = [Asked(2 + n / 5, 0.14, answered_by="cloud", cloud_s=0.05) for n in range(10)]
    row = figures("slow", Disturbed(Flow((*known, *slow), 0.0, 0.0), 2.0, 3.9), 2.0)
    assert row["cloud_slower"] == pytest.approx(5)
    assert row["is_met"]


@pytest.fixture
def plan_file(tiny_artifact: Path, tmp_path: Path) -> Path:
    """Edge-only, and an upload that is faster by far, so that the agent comes back to it."""
    times = {"edge_p90_s": 0.1, "cloud_s": 0.003, "cloud_p90_s": 0.003}
    local = {"name": "edge-only", "cut": "output", "codec": "none", "bytes_up": 0}
    upload = {"name": "upload", "cut": "input", "codec": "jpeg", "quality": 90, "bytes_up": 1500}
    plans = PlanFile(
        artifact_id=load_artifact(tiny_artifact).id.hex(),
        options=(
            PlanOption.model_validate({**local, **times, "edge_s": 0.1}),
            PlanOption.model_validate({**upload, **times, "edge_s": 0.01}),
        ),
    )
    path = tmp_path / "plan.json"
    path.write_text(plans.model_dump_json())
    return path


@pytest.mark.slow  # a minute: the breaker needs its time
def test_outages_lose_no_answer(tiny_artifact: Path, pictures: Path, plan_file: Path, capsys):
    status = main(
        [
            "bench", "outage", str(tiny_artifact), "--plan", str(plan_file), "--json",
            "--images", str(pictures), "--slowdown", "20", "--lead-s", "2", "--outage-s", "3",
            "--rest-s", "12",
        ]
    )  # fmt: skip
    result = json.loads(capsys.readouterr().out)
    assert status == 0, result
    assert [(row["case"], row["lost"]) for row in result["cases"]] == [
        ("killed", 0), ("silent", 0), ("slow", 0),
    ]  # fmt: skip
    assert all(row["answers_again_s"] < 12 for row in result["cases"])
