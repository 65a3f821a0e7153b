"""`splitserve plan` from a shell: exit status, sentence, tables, documents, plot, plan file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import conv, floats, model_of, relu, weight, write_model
from onnx import helper
from planned import made_up_profile

from splitserve.artifact import load_artifact
from splitserve.cli import main
from splitserve.plan import make_offers
from splitserve.plan.early import expect_early, say_early
from splitserve.plans import Link, PlanOption, best_option, lower_envelope, read_plans
from splitserve.profile import read_profile

Capture = pytest.CaptureFixture[str]
Plan = Callable[..., tuple[int, str, str]]

WHOLE_S = 0.02
SLOWDOWN = 16


@pytest.fixture(scope="module")
def profiles(calibrated_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with edge.json (16 times slower) and cloud.json."""
    folder, artifact = tmp_path_factory.mktemp("profiles"), load_artifact(calibrated_artifact)
    for name, slowdown in (("edge", SLOWDOWN), ("cloud", 1)):
        profile = made_up_profile(artifact, WHOLE_S, slowdown)
        (folder / f"{name}.json").write_text(profile.model_dump_json())
    return folder


@pytest.fixture
def plan(calibrated_artifact: Path, profiles: Path, capsys: Capture) -> Plan:
    def run(*words: str, cloud: bool = True) -> tuple[int, str, str]:
        flags = ["--edge-profile", str(profiles / "edge.json"), "--rtt", "10ms"]
        if cloud:
            flags += ["--cloud-profile", str(profiles / "cloud.json")]
        status = main(["plan", str(calibrated_artifact), *flags, *words])
        return (status, *capsys.readouterr())

    return run


def document(plan: Plan, *words: str) -> tuple[int, dict[str, Any]]:
    status, out, _ = plan("--json", *words)
    return status, json.loads(out)


@pytest.mark.parametrize(
    ("uplink", "status", "starts"),
    [
        ("2kbit", 3, "Do not split at 2 kbit/s and 10.0 ms: edge-only answers in 324.8 ms"),
        ("150kbit", 0, "Split at 150 kbit/s and 10.0 ms: "),
        ("100Mbit", 3, "Do not split at 100 Mbit/s and 10.0 ms: cloud jpeg 90 answers in "),
    ],
)
def test_the_exit_status_and_one_sentence_say_whether_to_split(
    plan: Plan, uplink: str, status: int, starts: str
):
    got, out, err = plan("--uplink", uplink)
    assert got == status
    assert out.splitlines()[-1].startswith(starts)
    assert err == ""


def test_the_document_agrees_with_the_cost_model(
    plan: Plan, calibrated_artifact: Path, profiles: Path
):
    status, found = document(plan, "--uplink", "150kbit", "--agreement", "95")
    assert status == 0
    edge, cloud = (read_profile(profiles / f"{name}.json") for name in ("edge", "cloud"))
    offers, lacking = make_offers(load_artifact(calibrated_artifact), edge, cloud)
    assert lacking == []
    good = [o.option for o in offers if o.option.agreement and o.option.agreement >= 95]
    link = Link(uplink_bps=150e3, rtt_s=0.01)
    assert found["answer"] == best_option(good, link).name
    assert found["envelope"] == [s.model_dump() for s in lower_envelope(good, 0.01)]
    assert {row["name"] for row in found["plans"]} == {o.option.name for o in offers}
    assert found["machines"]["ratio"] == pytest.approx(SLOWDOWN)
    assert found["here"]["gain"] <= found["at_best"]["gain"] * (1 + 1e-9)
    for worth in (found["here"], found["at_best"]):
        assert 0.9 < worth["reached"] <= 1 + 1e-9  # codecs take next to nothing here
    closed = found["at_best"]["closed_form"]
    assert closed["can_win"]
    assert found["at_best"]["gain"] == pytest.approx(closed["max_gain"], rel=0.02)
    assert found["at_best"]["rate_bps"] == pytest.approx(closed["rate_bps"], rel=0.02)


def test_refused_and_beaten_candidates_say_why(plan: Plan):
    _, found = document(plan, "--uplink", "150kbit")
    reasons = {row["name"]: row["reason"] for row in found["plans"]}
    assert reasons["cloud webp 80"] == "misses the agreement floor: 95.3 < 98 %"
    assert reasons["edge-only"].startswith("fastest up to ")
    assert reasons[found["answer"]] is None
    _, out, _ = plan("--uplink", "150kbit", "--all")
    assert "refused" in out
    assert "- misses the agreement floor: " in out


def test_limits_reach_the_decision(plan: Plan, calibrated_artifact: Path):
    names = load_artifact(calibrated_artifact).manifest.positions[1:-1]
    words = ["--ban", ",".join(names), "--memory", "64MB", "--deadline", "1s"]
    status, found = document(plan, "--uplink", "150kbit", *words)
    assert status == 3
    assert {row["reason"] for row in found["plans"] if row["is_split"]} <= {"banned"}
    assert "no split keeps to the limits" in found["sentence"]
    _, found = document(plan, "--uplink", "150kbit", "--leakage-ceiling", "0.5")
    assert {row["reason"] for row in found["plans"] if row["is_split"]} == {
        "not audited", "misses the agreement floor: 95 < 98 %",
    }  # fmt: skip
    status, found = document(plan, "--uplink", "150kbit", "--pin", names[0])
    assert found["answer"].startswith(names[0])
    _, found = document(plan, "--uplink", "150kbit", "--memory", "1kB")
    assert "over the memory" in str([row["reason"] for row in found["plans"]])


def test_energy_is_predicted_when_powers_are_given(plan: Plan):
    powers = ["--power-compute-w", "2", "--power-radio-w", "1"]
    _, found = document(plan, "--uplink", "150kbit", *powers)
    (edge,) = [row for row in found["plans"] if row["name"] == "edge-only"]
    assert edge["energy_j"] == pytest.approx(2 * edge["edge_s"])
    _, out, _ = plan("--uplink", "150kbit", *powers)
    assert " J " in out
    _, found = document(plan, "--uplink", "150kbit", *powers, "--energy", "0.5")
    assert "over the energy" in str([row["reason"] for row in found["plans"]])


def test_a_downlink_makes_the_reply_part_of_the_round_trip(plan: Plan):
    _, found = document(plan, "--uplink", "150kbit", "--downlink", "16kbit")
    assert found["link"]["rtt_s"] == pytest.approx(0.01 + 200 * 8 / 16e3)


def test_the_plan_file_holds_the_envelope_and_edge_only(
    plan: Plan, calibrated_artifact: Path, tmp_path: Path
):
    target = tmp_path / "plan.json"
    _, found = document(plan, "--uplink", "150kbit", "-o", str(target))
    plans = read_plans(target)
    assert plans.artifact_id == load_artifact(calibrated_artifact).id.hex()
    assert plans.expected == Link(uplink_bps=150e3, rtt_s=0.01)
    assert {o.name for o in plans.options} == {s["option"] for s in found["envelope"]} | {
        "edge-only"
    }
    sizes = [option.bytes_up for option in plans.options]
    assert sizes == sorted(sizes)


def test_edge_only_stays_in_the_file_when_nothing_is_feasible(plan: Plan, tmp_path: Path):
    target = tmp_path / "plan.json"
    status, out, _ = plan("--uplink", "1Mbit", "--ban", "input,output", "--memory", "1", "-o",
                          str(target))  # fmt: skip
    assert status == 3
    assert "no plan keeps to every limit" in out
    assert [option.name for option in read_plans(target).options] == ["edge-only"]


def test_the_plot_is_a_picture(plan: Plan, tmp_path: Path):
    for words in ([], ["--ban", "input,output", "--memory", "1"]):  # with and without an envelope
        target = tmp_path / "plots" / "plan.png"
        plan("--uplink", "150kbit", "--plot", str(target), *words)
        assert target.read_bytes()[:4] == b"\x89PNG"
        target.unlink()


def test_without_a_cloud_profile_the_edges_machine_stands_in(plan: Plan):
    _, out, err = plan("--uplink", "150kbit", "--json", cloud=False)
    _, both, _ = plan("--uplink", "150kbit", "--json")
    assert json.loads(out) == json.loads(both)  # the cloud's profile is the edge's at slowdown 1
    assert "no --cloud-profile: the cloud is taken to be the device's machine without" in err


def test_sampled_links_show_both_bests(plan: Plan, tmp_path: Path):
    trace = tmp_path / "trace.csv"
    trace.write_text("0,1e8\n90,4e4\n100,1e8\n")
    _, found = document(plan, "--trace", str(trace))
    assert found["link"]["uplink_bps"] == 1e8
    assert found["forecast"]["states"] == 3
    assert found["forecast"]["switching_mean_s"] <= found["forecast"]["plans"][0]["mean_s"]
    _, out, _ = plan("--uplink", "1Mbit", "--uplink-samples", "100Mbit,100Mbit,4kbit")
    assert "over 3 states of the link" in out
    assert "is best in expectation" in out


def test_a_profile_of_another_artifact_is_refused(
    plan: Plan, tiny_artifact: Path, tmp_path: Path, profiles: Path, capsys: Capture
):
    words = ["plan", str(tiny_artifact), "--edge-profile", str(profiles / "edge.json")]
    assert main([*words, "--uplink", "1Mbit", "--rtt", "0"]) == 2
    err = capsys.readouterr().err
    assert "--edge-profile: taken of artifact" in err
    assert f"splitserve profile {tiny_artifact}" in err
    other = tmp_path / "other.json"
    other.write_text(made_up_profile(load_artifact(tiny_artifact), 0.1).model_dump_json())
    status, _, err = plan("--uplink", "1Mbit", "--cloud-profile", str(other), cloud=False)
    assert status == 2
    assert "--cloud-profile: taken of artifact" in err


def test_candidates_that_the_cloud_did_not_measure_are_left_out_and_named(
    plan: Plan, profiles: Path, tmp_path: Path
):
    cloud = read_profile(profiles / "cloud.json")
    fewer = [c for c in cloud.candidates if c.codec != "jpeg"]
    path = tmp_path / "cloud.json"
    path.write_text(cloud.model_copy(update={"candidates": tuple(fewer)}).model_dump_json())
    _, out, err = plan("--uplink", "1Mbit", "--cloud-profile", str(path), cloud=False)
    assert "left out, for the cloud's profile lacks them: cloud jpeg 90" in err
    assert "cloud jpeg" not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--uplink", "5MB/s"], "--uplink: '5MB/s' is in bytes; write the rate in bits"),
        (["--uplink", "fast"], "--uplink: cannot read 'fast'; write it as 5.85Mbit"),
        ([], "name the link: --uplink 5.85Mbit"),
        (["--uplink", "1Mbit", "--pin", "nowhere"], "--pin: no position 'nowhere' here; there are"),
        (["--uplink", "1Mbit", "--energy", "1"], "needs both --power-compute-w and"),
        (["--uplink", "1Mbit", "--power-radio-w", "1"], "needs both --power-compute-w and"),
        (["--trace", "x", "--uplink-samples", "1Mbit"], "give one"),
        (["--trace", "/nowhere/x"], "cannot be read"),
        (["--uplink", "1Mbit", "--agreement", "101"], "--agreement: "),
    ],
)
def test_wrong_calls_name_the_fix(plan: Plan, words: list[str], message: str):
    status, out, err = plan(*words)
    assert status == 2
    assert out == ""
    assert message in err


def test_missing_flags_and_files_are_named(calibrated_artifact: Path, capsys: Capture):
    assert main(["plan", str(calibrated_artifact)]) == 2
    err = capsys.readouterr().err
    assert "--edge-profile: " in err
    assert "--rtt: " in err
    words = ["--edge-profile", "/nowhere/p.json", "--uplink", "1Mbit", "--rtt", "0"]
    assert main(["plan", str(calibrated_artifact), *words]) == 2
    assert "make one with: splitserve profile" in capsys.readouterr().err


def test_help_shows_the_flags(capsys: Capture):
    assert main(["plan", "--help"]) == 0
    out = capsys.readouterr().out
    for flag in ("--edge-profile", "--cloud-profile", "--uplink", "--rtt", "--leakage-ceiling"):
        assert flag in out


# A network without a bottleneck


@pytest.fixture(scope="module")
def wide_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four residual blocks of 16 channels at full resolution: every cut is wider than the input."""
    generator = np.random.default_rng(0)
    nodes, weights, source = [conv("stem", "image")], [], "stem"
    shapes = {"stem": (16, 3)}
    for index in range(4):
        first, second, join = f"b{index}.a", f"b{index}.b", f"b{index}"
        nodes += [
            conv(first, source), relu(f"{first}.relu", first), conv(second, f"{first}.relu"),
            helper.make_node("Add", [second, source], [join], join),
        ]  # fmt: skip
        shapes |= {first: (16, 16), second: (16, 16)}
        source = join
    for name, (outputs, inputs) in shapes.items():
        values = generator.standard_normal((outputs, inputs, 3, 3), np.float32) / 12
        weights.append(weight(f"{name}.weight", values.astype(np.float32)))
        weights.append(weight(f"{name}.bias", np.zeros(outputs, np.float32)))
    weights.append(weight("classes.weight", generator.standard_normal((10, 16), np.float32)))
    nodes += [
        helper.make_node("GlobalAveragePool", [source], ["mean"], "mean"),
        helper.make_node("Flatten", ["mean"], ["pool"], "pool", axis=1),
        helper.make_node("Gemm", ["pool", "classes.weight"], ["logits"], "logits", transB=1),
    ]
    model = model_of(
        nodes, [floats("image", ["batch", 3, 32, 32])], [floats("logits", ["batch", 10])], weights
    )
    folder = tmp_path_factory.mktemp("wide")
    path = write_model(model, folder / "wide.onnx")
    recipe = folder / "recipe.toml"
    recipe.write_text(
        'name = "wide"\n[preprocess]\nresize_short_side = 36\ncrop = [32, 32]\n'
        "mean = [127.0, 127.0, 127.0]\nstd = [128.0, 128.0, 128.0]\n"
    )
    target = folder / "artifact"
    cuts = ["--cuts", "b0,b1,b2,b3", "--recipe", str(recipe)]
    assert main(["split", str(path), "-o", str(target), *cuts]) == 0
    return target


@pytest.mark.parametrize("uplink", ["20kbit", "1Mbit", "5.85Mbit", "100Mbit"])
def test_a_network_without_a_bottleneck_is_not_split_and_the_reason_is_given(
    wide_artifact: Path, tmp_path: Path, capsys: Capture, uplink: str
):
    artifact = load_artifact(wide_artifact)
    path = tmp_path / "edge.json"
    path.write_text(made_up_profile(artifact, 0.03, SLOWDOWN).model_dump_json())
    words = ["--edge-profile", str(path), "--uplink", uplink, "--rtt", "20ms"]
    assert main(["plan", str(wide_artifact), *words]) == 3
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("Do not split at ")
    assert "a split is the fastest on no link" in last
    assert last.endswith("every split sends more (16.5 kB and up) than cloud jpeg 90 (5 kB).")


def test_the_same_from_a_measured_profile(
    wide_artifact: Path, pictures: Path, tmp_path: Path, capsys: Capture
):
    profile = tmp_path / "p.json"
    take = [
        "--rounds",
        "5",
        "--idle-ms",
        "1",
        "--slowdown",
        "4",
        "--images",
        str(pictures),
        "-o",
        str(profile),
    ]
    assert main(["profile", str(wide_artifact), *take]) == 0
    words = ["--edge-profile", str(profile), "--uplink", "1Mbit", "--rtt", "1ms"]
    assert main(["plan", str(wide_artifact), *words, "--agreement", "0"]) == 3
    assert "every split sends more" in capsys.readouterr().out.splitlines()[-1]


# Early answers


def plan_with_exits(exit_artifact: Path, tmp_path: Path, *words: str) -> int:
    artifact = load_artifact(exit_artifact)
    for name, slowdown in (("edge", SLOWDOWN), ("cloud", 1)):
        profile = made_up_profile(artifact, WHOLE_S, slowdown)
        (tmp_path / f"{name}.json").write_text(profile.model_dump_json())
    flags = [f"--{name}-profile={tmp_path / name}.json" for name in ("edge", "cloud")]
    return main(
        ["plan", str(exit_artifact), *flags, "--rtt", "10ms", "--uplink", "150kbit", *words]
    )


def test_a_budget_of_uploads_goes_into_the_file_and_its_worth_is_said(
    exit_artifact: Path, tmp_path: Path, capsys: Capture
):
    target = tmp_path / "plan.json"
    words = ("--upload-budget", "65", "-o", str(target))
    assert plan_with_exits(exit_artifact, tmp_path, *words) == 0
    plans, artifact = read_plans(target), load_artifact(exit_artifact)
    assert plans.upload_budget == 65
    lines = [one for one in capsys.readouterr().out.splitlines() if one.startswith("Early")]
    cuts = {one.cut for one in plans.options} & {cut.name for cut in artifact.manifest.cuts}
    assert len(lines) == len(cuts) >= 1
    for line in lines:
        assert "35 % of the inputs, so 65 % are uploaded (the budget)" in line
        assert "as calibrated at 70 % uploads" in line
    assert plan_with_exits(exit_artifact, tmp_path, *words, "--json") == 0
    found = json.loads(capsys.readouterr().out)["early"]
    assert {one["cut"] for one in found} == cuts
    assert {(one["upload"], one["rate"]["upload"]) for one in found} == {(65, 70)}


def test_the_floor_of_agreement_allows_no_fewer_uploads_than_it_does(
    exit_artifact: Path, tmp_path: Path
):
    manifest = load_artifact(exit_artifact).manifest
    (cut, *_), options = manifest.cuts, [made_up_option(manifest.cuts[0].name)]
    floors = [
        floor.model_copy(update={"upload": 45.0})
        for floor in cut.exit.floors
        if floor.agreement == 98
    ]
    for found, upload, said in (
        (floors, 45.0, "55 % of the inputs, so 45 % are uploaded (98 % agreement allows no fewer)"),
        ([], 100.0, "next to none, for no lower share of uploads kept 98 % agreement"),
    ):
        exit_ = cut.exit.model_copy(update={"floors": tuple(found)})
        changed = cut.model_copy(update={"exit": exit_})
        now = manifest.model_copy(update={"cuts": (changed, *manifest.cuts[1:])})
        (early,) = expect_early(now, options, 20)
        assert early.upload == upload
        assert said in say_early([early], 20)[0]


def made_up_option(cut: str) -> PlanOption:
    return PlanOption(
        name=cut, cut=cut, codec="raw", bytes_up=1, edge_s=1, edge_p90_s=1, cloud_s=1, cloud_p90_s=1
    )


def test_without_a_budget_the_file_leaves_exits_alone(exit_artifact: Path, tmp_path: Path):
    target = tmp_path / "plan.json"
    assert plan_with_exits(exit_artifact, tmp_path, "-o", str(target)) == 0
    assert read_plans(target).upload_budget is None


def test_a_budget_without_exits_is_called_wrongly(plan: Plan):
    status, _, err = plan("--uplink", "150kbit", "--upload-budget", "65")
    assert status == 2
    assert "--exits CUT" in " ".join(err.split())
