"""The commands of this room, called as an operator does."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import onnx
import pytest
from graphs import floats, fork_net, model_of, tiny_net, write_model, write_tiny
from onnx import helper

from splitserve.artifact import load_artifact
from splitserve.cli import main
from splitserve.split import recipe_of

Capture = pytest.CaptureFixture[str]


def test_cuts_prints_one_json_document(tiny_model: Path, capsys: Capture) -> None:
    assert main(["cuts", str(tiny_model), "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert err == ""
    assert document["macs"] == 424_096
    rows = {row["name"]: row for row in document["cuts"]}
    assert rows["stage"] == {
        "name": "stage", "dtype": "float32", "shape": ["batch", 16, 8, 8], "elements": 1024,
        "raw_bytes": 4096, "macs_share": 0.999623, "is_fused": False, "is_chosen": True,
    }  # fmt: skip
    assert [name for name, row in rows.items() if row["is_chosen"]] == ["stem", "stage", "mean"]
    assert [name for name, row in rows.items() if row["is_fused"]] == ["stem.conv", "stage.conv"]


def test_cuts_prints_a_table(tiny_model: Path, capsys: Capture) -> None:
    assert main(["cuts", str(tiny_model)]) == 0
    out, err = capsys.readouterr()
    assert "8 single-tensor cuts" in out
    assert "16x8x8" in out
    assert "fused" in out
    assert "splitserve split" in err


@pytest.fixture(scope="module")
def fork_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(fork_net(), tmp_path_factory.mktemp("fork") / "fork.onnx")


def test_cuts_lists_the_frontier_with_cuts_of_several_tensors(
    fork_model: Path, capsys: Capture
) -> None:
    assert main(["cuts", str(fork_model), "--frontier", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    rows = {row["name"]: row for row in json.loads(out)["cuts"]}
    assert list(rows) == ["stem", "a+b", "pool"]
    assert rows["a+b"] == {
        "name": "a+b",
        "egress": [
            {"name": "a", "dtype": "float32", "shape": ["batch", 2, 8, 8]},
            {"name": "b", "dtype": "float32", "shape": ["batch", 2, 8, 8]},
        ],
        "raw_bytes": 1024,
        "macs_share": round(73_728 / (73_728 + 64 * 128 * 18 + 640), 6),
        "is_fused": False,
        "is_chosen": True,
    }
    assert main(["cuts", str(fork_model), "--frontier"]) == 0
    out = capsys.readouterr().out
    assert "3 cuts on the frontier" in out
    assert "2 tensors" in out


def test_cuts_of_single_tensors_name_what_else_is_chosen(fork_model: Path, capsys: Capture) -> None:
    assert main(["cuts", str(fork_model)]) == 0
    out, err = capsys.readouterr()
    assert "5 single-tensor cuts" in out
    assert "a+b" not in out
    assert "Chosen and not in this list: a+b." in " ".join(err.split())


def test_split_and_verify_cuts_of_several_tensors(
    fork_model: Path, tmp_path: Path, capsys: Capture
) -> None:
    target = tmp_path / "artifact"
    words = ["split", str(fork_model), "-o", str(target), "--cuts", "pool,b+a", "--json"]
    assert main(words) == 0
    positions = json.loads(capsys.readouterr().out)["positions"]
    assert positions == ["input", "a+b", "pool", "output"]
    assert main(["verify", str(target), "--model", str(fork_model)]) == 0
    assert main(["inspect", str(target)]) == 0
    capsys.readouterr()
    assert main(["verify", str(fork_model), "--frontier", "--batch", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    names = ["stem.conv", "stem", "a+b", "both", "mean", "pool"]
    assert [row["cut"] for row in rows] == names
    assert all(row["is_exact"] for row in rows)


def test_names_that_look_like_markup_are_shown_as_they_are(tmp_path: Path, capsys: Capture) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["[/bold]a"]),
        helper.make_node("Neg", ["[/bold]a"], ["y"]),
    ]
    model = model_of(nodes, [floats("x", [4])], [floats("y", [4])])
    path = write_model(model, tmp_path / "[bold]x.onnx")
    target = tmp_path / "[bold]"
    assert main(["cuts", str(path)]) == 0
    assert main(["split", str(path), "--cuts", "all", "-o", str(target)]) == 0
    assert main(["inspect", str(target)]) == 0
    assert main(["verify", str(path)]) == 0
    assert main(["verify", str(target), "--model", str(path)]) == 0
    assert capsys.readouterr().out.count("[/bold]a") >= 3


def test_split_writes_the_artifact_and_names_the_next_command(
    tiny_model: Path, tmp_path: Path, capsys: Capture
) -> None:
    target = tmp_path / "out" / "artifact"
    assert main(["split", str(tiny_model), "-o", str(target)]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert load_artifact(target).manifest.positions == ("input", "stem", "stage", "mean", "output")
    assert f"splitserve verify {target} --model {tiny_model}" in err


def test_split_takes_named_cuts_and_prints_json(
    tiny_model: Path, tmp_path: Path, capsys: Capture
) -> None:
    target = tmp_path / "artifact"
    words = ["split", str(tiny_model), "--output", str(target), "--cuts", "pool,block", "--json"]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["positions"] == ["input", "block", "pool", "output"]
    assert document["id"] == load_artifact(target).id.hex()


def test_split_takes_every_cut(tiny_model: Path, tmp_path: Path) -> None:
    assert main(["split", str(tiny_model), "-o", str(tmp_path / "a"), "--cuts", "all"]) == 0
    assert len(load_artifact(tmp_path / "a").manifest.cuts) == 8


def test_split_warns_where_no_preprocessing_is_known(tmp_path: Path, capsys: Capture) -> None:
    path = write_model(tiny_net(), tmp_path / "plain.onnx")
    assert main(["split", str(path), "-o", str(tmp_path / "a")]) == 0
    assert "--recipe" in capsys.readouterr().err
    assert load_artifact(tmp_path / "a").manifest.model.name == "plain"


def test_split_takes_a_recipe_for_any_model(tmp_path: Path, capsys: Capture) -> None:
    path = write_model(tiny_net(), tmp_path / "plain.onnx")
    (tmp_path / "recipe.toml").write_text(
        'name = "named"\n[preprocess]\nresize_short_side = 32\ncrop = [32, 32]\n'
        "mean = [0.0, 0.0, 0.0]\nstd = [255.0, 255.0, 255.0]\n"
    )
    words = ["--recipe", str(tmp_path / "recipe.toml"), "-o", str(tmp_path / "a")]
    assert main(["split", str(path), *words]) == 0
    assert "--recipe" not in capsys.readouterr().err
    assert load_artifact(tmp_path / "a").manifest.model.name == "named"


def test_split_again_over_an_artifact_leaves_a_sound_one(tiny_model: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "a")
    assert main(["split", str(tiny_model), "-o", target, "--cuts", "all"]) == 0
    assert main(["split", str(tiny_model), "-o", target, "--cuts", "stem"]) == 0
    assert main(["inspect", target]) == 0
    assert main(["verify", target, "--model", str(tiny_model)]) == 0


def test_verify_of_a_model_tries_every_cut(
    tiny_model: Path, pictures: Path, capsys: Capture
) -> None:
    words = ["verify", str(tiny_model), "--images", str(pictures), "--batch", "2", "--json"]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["compared"], document["good"]) == (8, 8)
    assert {row["batch"] for row in document["rows"]} == {2}


def test_verify_of_an_artifact_prints_what_it_compared(
    tiny_model: Path, tiny_artifact: Path, capsys: Capture
) -> None:
    assert main(["verify", str(tiny_artifact), "--model", str(tiny_model)]) == 0
    out, err = capsys.readouterr()
    assert "equal bit for bit" in out
    assert "random inputs, seed 0" in err


def test_verify_of_a_calibrated_artifact_counts_what_it_compares(
    calibrated_artifact: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    totals: list[int] = []

    def count(steps: Iterable[object], _: str, total: int, **__: object) -> Iterable[object]:
        totals.append(total)
        return steps

    monkeypatch.setattr("splitserve.split.command_verify.track", count)
    assert main(["verify", str(calibrated_artifact), "--model", str(tiny_model), "--json"]) == 0
    assert totals == [json.loads(capsys.readouterr().out)["compared"]]


def test_verify_says_no_when_the_artifact_is_of_other_weights(
    tiny_artifact: Path, tmp_path: Path, capsys: Capture
) -> None:
    other = write_tiny(tmp_path / "other.onnx", seed=1)
    assert main(["verify", str(tiny_artifact), "--model", str(other)]) == 3
    out, err = capsys.readouterr()
    assert "differs" in out
    assert "0 of" in err


def test_verify_of_a_model_with_other_ends_names_the_right_one(
    lite0_artifact: Path, tiny_model: Path, capsys: Capture
) -> None:
    assert main(["verify", str(lite0_artifact), "--model", str(tiny_model)]) == 2
    assert "made from: efficientnet_lite0, sha256" in capsys.readouterr().err


def test_inspect_prints_the_manifest_and_the_id(tiny_artifact: Path, capsys: Capture) -> None:
    assert main(["inspect", str(tiny_artifact), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    artifact = load_artifact(tiny_artifact)
    assert document["id"] == artifact.id.hex()
    assert document["manifest"] == artifact.manifest.model_dump(mode="json")


def test_inspect_prints_every_position(tiny_artifact: Path, capsys: Capture) -> None:
    assert main(["inspect", str(tiny_artifact)]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("input", "stem", "stage", "mean", "output"))
    assert "files match their hashes" in out


def test_inspect_prints_the_rates_of_calibrated_cuts(
    tiny_artifact: Path, calibrated_artifact: Path, capsys: Capture
) -> None:
    assert main(["inspect", str(tiny_artifact)]) == 0
    assert "step-ans" not in capsys.readouterr().out
    assert main(["inspect", str(calibrated_artifact)]) == 0
    out = capsys.readouterr().out
    assert "99.90 (98.90 to 100.00)" in out
    assert "1,500" in out
    assert main(["inspect", str(calibrated_artifact), "--json"]) == 0
    cut = json.loads(capsys.readouterr().out)["manifest"]["cuts"][0]
    rate = cut["calibration"]["rates"][1]
    assert (rate["floor"], rate["bytes_mean"], rate["bytes_p95"]) == (99.0, 1500.0, 1800.0)
    assert rate["agreement"] == {"value": 99.0, "low": 98.0, "high": 100.0}


def test_inspect_notices_changed_tables(
    calibrated_artifact: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(calibrated_artifact, folder)
    (folder / "t1.npz").write_bytes(b"other")
    assert main(["inspect", str(folder)]) == 1
    assert "t1.npz" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["s1.onnx", "h2.onnx"])
def test_inspect_notices_any_changed_file(
    lite0_artifact: Path, tmp_path: Path, capsys: Capture, name: str
) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(lite0_artifact, folder)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    assert main(["inspect", str(folder)]) == 1
    assert f"{name}: content differs from the sha256" in capsys.readouterr().err


def test_export_of_an_unknown_name_lists_the_known_ones(capsys: Capture) -> None:
    assert main(["export", "resnet9000"]) == 2
    assert "efficientnet_lite0, " in capsys.readouterr().err


def write_model_recipe(folder: Path, script: str) -> None:
    folder.mkdir()
    (folder / "export.py").write_text(script)
    (folder / "recipe.toml").write_text('name = "mine"')


def test_export_runs_a_recipe_and_embeds_it(
    tiny_model: Path, tmp_path: Path, capsys: Capture
) -> None:
    script = f"import shutil, sys\nshutil.copy({str(tiny_model)!r}, sys.argv[1])\n"
    write_model_recipe(tmp_path / "mine", script)
    target = tmp_path / "new" / "mine.onnx"
    assert main(["export", "mine", "--models", str(tmp_path), "-o", str(target)]) == 0
    assert f"splitserve cuts {target}" in capsys.readouterr().err
    assert recipe_of(onnx.load(target), "fallback").name == "mine"
    assert [path.name for path in target.parent.iterdir()] == ["mine.onnx"]


def test_failed_export_is_one_line_and_leaves_no_file(tmp_path: Path, capsys: Capture) -> None:
    write_model_recipe(tmp_path / "mine", "import sys\nsys.exit('no weights today')\n")
    target = tmp_path / "new" / "mine.onnx"
    assert main(["export", "mine", "--models", str(tmp_path), "-o", str(target)]) == 1
    assert capsys.readouterr().err.endswith("failed (1): no weights today\n")
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cuts"], "MODEL"),
        (["cuts", "nowhere.onnx"], "nowhere.onnx: no such file"),
        (["split", "nowhere.onnx"], "nowhere.onnx: no such file"),
        (["split", "MODEL", "--cuts", "nope"], "list them with: splitserve cuts"),
        (["split", "FORK", "--cuts", "stem+a,stem+b"], "stem+a and stem+b are not nested"),
        (["split", "MODEL", "--recipe", "nowhere.toml"], "nowhere.toml: No such file"),
        (["split", "MODEL", "--bogus"], "--bogus"),
        (["verify", "ARTIFACT"], "add --model MODEL.onnx"),
        (["verify", "MODEL", "--batch", "0"], "--batch: Input should be greater than"),
        (["verify", "MODEL", "--batch", "x"], "see: splitserve verify --help"),
        (["verify", "MODEL", "--images", "EMPTY"], "no .jpg, .jpeg, .png, .webp, .bmp files here"),
        (["verify", "PLAIN", "--images", "EMPTY"], "a recipe with preprocessing"),
    ],
)
def test_wrong_call_exits_2_and_names_the_fix(
    tiny_model: Path,
    tiny_artifact: Path,
    tmp_path: Path,
    capsys: Capture,
    words: list[str],
    message: str,
) -> None:
    (tmp_path / "empty").mkdir()
    places = {
        "MODEL": tiny_model,
        "ARTIFACT": tiny_artifact,
        "FORK": write_model(fork_net(), tmp_path / "fork.onnx"),
        "PLAIN": write_model(tiny_net(), tmp_path / "plain.onnx"),
        "EMPTY": tmp_path / "empty",
    }
    assert main([str(places.get(word, word)) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inspect", "EMPTY"], "make one with: splitserve split"),
        (["cuts", "TEXT"], "not a valid ONNX model"),
        (["split", "MODEL", "-o", "TEXT"], "text.onnx"),
    ],
)
def test_failed_call_exits_1_without_a_traceback(
    tiny_model: Path, tmp_path: Path, capsys: Capture, words: list[str], message: str
) -> None:
    places = {"MODEL": tiny_model, "TEXT": tmp_path / "text.onnx", "EMPTY": tmp_path / "empty"}
    places["TEXT"].write_text("no network")
    places["EMPTY"].mkdir()
    assert main([str(places.get(word, word)) for word in words]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err


def test_variable_of_the_environment_sets_an_option(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPLITSERVE_SPLIT_OUTPUT", str(tmp_path / "here"))
    assert main(["split", str(tiny_model)]) == 0
    assert load_artifact(tmp_path / "here").manifest.model.name == "tiny"


def test_unknown_variable_of_the_command_is_refused(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("SPLITSERVE_SPLIT_OUTPTU", "here")
    assert main(["split", str(tiny_model)]) == 2
    assert "SPLITSERVE_SPLIT_OUTPTU" in capsys.readouterr().err
