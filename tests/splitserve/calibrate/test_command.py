"""`splitserve calibrate` from a shell: tables and rates that are what they say."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from calibrated import moving_pixels
from onnx import TensorProto, helper
from PIL import Image
from rich.progress import Progress, TaskID

from splitserve.artifact import Artifact, load_artifact, write_artifact
from splitserve.calibrate import Task, calibrate_artifact, make_judge, model_input, read_inputs
from splitserve.calibrate.whole import COPIES
from splitserve.cli import main
from splitserve.codec import Codecs, StepAnsCodec, read_tables
from splitserve.runtime import RuntimeOptions, open_chain
from splitserve.split import load_graph, recipe_of, split_model
from splitserve.wire import Request, Section, encode_frame

Capture = pytest.CaptureFixture[str]
PICTURES = 40
FLOORS = [95.0, 80.0]


@pytest.fixture(scope="module")
def images(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty smooth scenes with labels."""
    folder, artifact = tmp_path_factory.mktemp("images"), load_artifact(tiny_artifact)
    rows = ["file,label"]
    for seed in range(PICTURES):
        (pixels,) = moving_pixels(artifact, seed, 1)
        Image.fromarray(pixels).save(folder / f"{seed:02}.png")
        rows.append(f"{seed:02}.png,{seed % 10}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder


def words(artifact: Path, images: Path, *more: str) -> list[str]:
    flags = ["--images", str(images), "--floors", "95,80", "--threads", "1", *more]
    return ["calibrate", str(artifact), *flags]


@pytest.fixture(scope="module")
def calibrated(
    tiny_artifact: Path, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    target = tmp_path_factory.mktemp("calibrated") / "tiny"
    assert main(words(tiny_artifact, images, "-o", str(target), "--seed", "5")) == 0
    return load_artifact(target)


def calibrations(artifact: Artifact) -> list[Any]:
    return [cut.calibration for cut in artifact.manifest.cuts]


# What is written


def test_every_cut_has_tables_that_are_read(calibrated: Artifact, tiny_artifact: Path):
    before = load_artifact(tiny_artifact)
    codecs = Codecs(calibrated)
    for position in range(1, len(calibrated.manifest.cuts) + 1):
        assert isinstance(codecs.encoder("step-ans", position, 80), StepAnsCodec)
    assert calibrated.id != before.id
    assert all(each is None for each in calibrations(before))
    assert calibrated.manifest.segments == before.manifest.segments


def test_the_manifest_records_how_it_was_found_out(calibrated: Artifact, images: Path):
    inputs = read_inputs(images, calibrated.manifest, 500, 5)
    for position, calibration in enumerate(calibrations(calibrated), 1):
        content = (calibrated.root / calibration.tables.file).read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        assert calibration.tables.file == f"c{position}-{sha256[:8]}.npz"
        assert calibration.tables.sha256 == sha256
        assert calibration.tables.bytes == len(content)
        assert (calibration.fitted_on, calibration.measured_on) == (20, 20)
        assert calibration.inputs_sha256 == inputs.sha256
        assert (calibration.seed, calibration.agreement_is) == (5, "argmax")
        assert calibration.tolerance is None


def test_floors_are_kept_and_lower_ones_are_cheaper(calibrated: Artifact):
    for calibration in calibrations(calibrated):
        assert [rate.floor for rate in calibration.rates] == FLOORS
        assert all(rate.agreement.value >= rate.floor for rate in calibration.rates)
        fine, coarse = calibration.rates
        assert coarse.parameter >= fine.parameter
        assert coarse.bytes_mean <= fine.bytes_mean <= fine.bytes_p95
        assert fine.agreement.low < fine.agreement.value <= fine.agreement.high


def test_a_rate_is_what_the_held_inputs_measure_again(calibrated: Artifact, images: Path):
    """The whole way by hand: head, codec, frame, tail, on the half that nothing was fitted to."""
    manifest = calibrated.manifest
    inputs = read_inputs(images, manifest, 500, 5)
    chain, codecs = open_chain(calibrated, RuntimeOptions(threads=1)), Codecs(calibrated)
    (rate, _), name = calibrations(calibrated)[0].rates, manifest.outputs[0].name
    codec = codecs.encoder("step-ans", 1, rate.floor)
    hits, right, unsplit, sizes = [], [], [], []
    for index in range(PICTURES // 2, PICTURES):
        tensors = model_input(inputs.pixels[index], manifest)
        want = chain.run(tensors, 0, len(chain))[name].argmax()
        features = chain.run(tensors, 0, 1)
        sections, decoded = [], {}
        for number, spec in enumerate(manifest.egress(1)):
            payload, shape = codec.encode(features[spec.name], number), features[spec.name].shape
            sections.append(Section(shape, payload))
            decoded[spec.name] = codec.decode(memoryview(payload), shape, spec.dtype, number)
        got = chain.run(decoded, 1, len(chain))[name].argmax()
        request = Request(
            bytes(16), calibrated.id, 1, 5, tuple(sections), 1.0, parameter=codec.parameter
        )
        sizes.append(len(encode_frame(request)))
        hits.append(got == want)
        right.append(got == inputs.labels[index])
        unsplit.append(want == inputs.labels[index])
    assert rate.agreement.value == pytest.approx(100 * np.mean(hits))
    assert rate.accuracy.value == pytest.approx(100 * np.mean(right))
    assert rate.accuracy_unsplit.value == pytest.approx(100 * np.mean(unsplit))
    assert rate.bytes_mean == pytest.approx(np.mean(sizes), abs=0.1)
    assert rate.bytes_p95 == pytest.approx(np.percentile(sizes, 95), abs=0.1)


def test_the_same_seed_gives_the_same_artifact(
    calibrated: Artifact, tiny_artifact: Path, images: Path, tmp_path: Path
):
    assert main(words(tiny_artifact, images, "-o", str(tmp_path / "a"), "--seed", "5")) == 0
    assert load_artifact(tmp_path / "a").id == calibrated.id
    assert main(words(tiny_artifact, images, "-o", str(tmp_path / "b"), "--seed", "6")) == 0
    assert load_artifact(tmp_path / "b").id != calibrated.id


def test_an_artifact_is_calibrated_in_place_and_again(
    calibrated: Artifact, images: Path, tmp_path: Path, capsys: Capture
):
    root = Path(shutil.copytree(calibrated.root, tmp_path / "tiny"))
    name = calibrated.manifest.cuts[0].name
    assert main(words(root, images, "--cuts", name, "--seed", "9", "--json")) == 0
    document = json.loads(capsys.readouterr().out)
    again = load_artifact(root)
    assert document["id"] == again.id.hex() != calibrated.id.hex()
    assert [cut["name"] for cut in document["cuts"]] == [name]
    assert document["cuts"][0]["calibration"]["seed"] == 9
    seeds = [calibration.seed for calibration in calibrations(again)]
    assert seeds == [9] + [5] * (len(seeds) - 1)
    files = {stored.file for stored in again.manifest.files}
    assert {path.name for path in root.iterdir()} == {"manifest.json", *files}
    Codecs(again)


# What is shown


def test_json_is_one_document(tiny_artifact: Path, images: Path, tmp_path: Path, capsys: Capture):
    name = load_artifact(tiny_artifact).manifest.cuts[-1].name
    target = tmp_path / "out"
    assert main(words(tiny_artifact, images, "-o", str(target), "--cuts", name, "--json")) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["artifact"] == str(target)
    written = load_artifact(target)
    assert document["id"] == written.id.hex()
    want = written.manifest.cuts[-1].calibration.model_dump(mode="json")
    assert document["cuts"] == [{"name": name, "calibration": want}]
    assert [cut.calibration is None for cut in written.manifest.cuts][:-1] == [True] * (
        len(written.manifest.cuts) - 1
    )


def test_the_table_shows_every_rate(
    tiny_artifact: Path, images: Path, tmp_path: Path, capsys: Capture
):
    manifest = load_artifact(tiny_artifact).manifest
    name = manifest.cuts[0].name
    assert main(words(tiny_artifact, images, "-o", str(tmp_path), "--cuts", name)) == 0
    out, err = capsys.readouterr()
    assert name in out
    rates = load_artifact(tmp_path).manifest.cuts[0].calibration.rates
    assert all(f"{rate.bytes_mean:,.0f}" in out for rate in rates)
    assert load_artifact(tmp_path).id.hex() in err


def test_outputs_may_be_judged_by_their_error(
    tiny_artifact: Path, images: Path, tmp_path: Path, capsys: Capture
):
    name = load_artifact(tiny_artifact).manifest.cuts[0].name
    more = ["--agreement", "error", "--tolerance", "0.1", "--cuts", name, "-o", str(tmp_path)]
    assert main(words(tiny_artifact, images, *more)) == 0
    calibration = load_artifact(tmp_path).manifest.cuts[0].calibration
    assert (calibration.agreement_is, calibration.tolerance) == ("error", 0.1)
    assert calibration.rates


# What is said of it


def test_the_manifest_names_the_inputs(calibrated: Artifact, images: Path):
    names = calibrated.manifest.calibrated_on
    want = {hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in images.glob("*.png")}
    assert list(names) == sorted(want)


def test_inputs_of_cuts_that_stay_are_named_beside_the_new_ones(
    calibrated: Artifact, images: Path, tmp_path: Path
):
    folder = tmp_path / "others"
    folder.mkdir()
    for path in images.glob("*.png"):
        (folder / path.name).write_bytes(path.read_bytes() + b"end")
    old, first = set(calibrated.manifest.calibrated_on), calibrated.manifest.cuts[0].name
    target = str(tmp_path / "out")
    assert main(words(calibrated.root, folder, "-o", target, "--cuts", first)) == 0
    assert set(load_artifact(Path(target)).manifest.calibrated_on) > old
    assert main(words(calibrated.root, folder, "-o", target)) == 0
    assert not old.intersection(load_artifact(Path(target)).manifest.calibrated_on)


def test_too_many_inputs_to_name_are_refused(
    calibrated: Artifact, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
):
    monkeypatch.setattr("splitserve.calibrate.whole.CALIBRATED_ON_MAX", PICTURES - 1)
    assert main(words(calibrated.root, images)) == 2
    assert "40 calibration inputs, where an artifact may name 39" in capsys.readouterr().err


def test_few_inputs_are_warned_of(
    tiny_artifact: Path, images: Path, tmp_path: Path, capsys: Capture
):
    """Twenty measure: at 99 and 98 not one answer may differ, at 95 one may."""
    name = load_artifact(tiny_artifact).manifest.cuts[0].name
    flags = ["-o", str(tmp_path), "--cuts", name, "--floors", "100,99,98,95", "--json"]
    main(["calibrate", str(tiny_artifact), "--images", str(images), *flags])
    err = capsys.readouterr().err
    assert "floor 99: 20 inputs measure it" in err
    assert "at least 200 inputs" in err
    assert "at least 100 inputs" in err
    assert "floor 95" not in err
    assert "floor 100" not in err
    assert "agreement: the same best class of logits (10 scores)" in err


def test_floors_that_no_step_keeps_exit_3_and_are_named(
    tiny_artifact: Path, images: Path, tmp_path: Path, capsys: Capture
):
    name = load_artifact(tiny_artifact).manifest.cuts[0].name
    more = ["--agreement", "error", "--tolerance", "1e-12", "--cuts", name, "-o", str(tmp_path)]
    assert main(words(tiny_artifact, images, *more)) == 3
    out, err = capsys.readouterr()
    assert f"{name}: even the finest step misses the floors 95, 80" in err
    assert "agreement: logits within a relative error of 1e-12" in err
    assert "none kept" in out
    assert load_artifact(tmp_path).manifest.cuts[0].calibration.rates == ()


def test_large_features_use_fewer_inputs_and_say_so(
    tiny_artifact: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
):  # fmt: skip
    cut = load_artifact(tiny_artifact).manifest.cuts[0]
    weight = COPIES * sum(spec.raw_bytes() for spec in cut.egress) + 2 * 40
    monkeypatch.setattr("splitserve.calibrate.whole.MEMORY_BYTES", 15 * weight)
    assert main(words(tiny_artifact, images, "--cuts", cut.name, "-o", str(tmp_path))) == 0
    calibration = load_artifact(tmp_path).manifest.cuts[0].calibration
    assert (calibration.fitted_on, calibration.measured_on) == (15, 15)
    want = f"{cut.name}: its features are large, so 15 inputs were fitted to and 15 measured, of 40"
    assert want in capsys.readouterr().err


def test_a_cut_named_twice_is_calibrated_once(
    tiny_artifact: Path, images: Path, tmp_path: Path, capsys: Capture
):
    name = load_artifact(tiny_artifact).manifest.cuts[-1].name
    more = ["--cuts", f"{name},{name}", "-o", str(tmp_path), "--json"]
    assert main(words(tiny_artifact, images, *more)) == 0
    assert [cut["name"] for cut in json.loads(capsys.readouterr().out)["cuts"]] == [name]


def test_progress_knows_how_much_there_is(tiny_artifact: Path, images: Path, tmp_path: Path):
    artifact = load_artifact(tiny_artifact)
    totals: list[float] = []

    class Watched(Progress):
        def update(self, task_id: TaskID, **change: Any) -> None:
            totals.append(change["total"])
            assert self.tasks[task_id].completed <= change["total"]
            super().update(task_id, **change)

    progress = Watched(disable=True)
    inputs = read_inputs(images, artifact.manifest, 500, 0)
    task = Task([1], FLOORS, make_judge(artifact.manifest.outputs, None, 0.05), threads=1)
    calibrate_artifact(artifact, inputs, task, tmp_path, progress)
    announced, done = totals
    assert announced >= done == progress.tasks[0].completed
    assert progress.finished


def test_the_help_shows_no_machinery(capsys: Capture):
    assert main(["calibrate", "--help"]) == 0
    assert "factory" not in capsys.readouterr().out


# Other models


def without_preprocessing(source: Path, target: Path) -> Artifact:
    artifact = load_artifact(source)
    manifest = artifact.manifest.model_copy(update={"preprocess": None})
    files = {stored.file: artifact.read_file(stored) for stored in manifest.files}
    return write_artifact(target, manifest, files)


def test_a_model_without_preprocessing_is_calibrated_on_stored_tensors(
    tiny_artifact: Path, tmp_path: Path
):
    """Without pictures there is nothing to move, so there are no motion levels."""
    plain = without_preprocessing(tiny_artifact, tmp_path / "plain")
    folder = tmp_path / "inputs"
    folder.mkdir()
    for seed in range(20):
        image = np.random.default_rng(seed).standard_normal((1, 3, 32, 32)).astype(np.float32)
        np.savez(folder / f"{seed:02}.npz", image=image)
    assert main(words(plain.root, folder)) == 0
    written = load_artifact(plain.root)
    assert calibrations(written)[0].measured_on == 10
    (tables,) = read_tables(written.read_tables(1) or b"", written.manifest.egress(1))
    assert tables is not None
    assert tables.pulls.shape[0] == 0


def test_a_cut_of_several_tensors_has_tables_for_each(
    calibrated_fork: Path, images: Path, tmp_path: Path
):
    assert main(words(calibrated_fork, images, "-o", str(tmp_path))) == 0
    written = load_artifact(tmp_path)
    (calibration,), egress = calibrations(written), written.manifest.egress(1)
    tables = read_tables(written.read_tables(1) or b"", egress)
    assert len(egress) == len(tables) == 2
    assert all(table is not None and len(table.pulls) for table in tables)
    assert all(rate.agreement.value >= rate.floor for rate in calibration.rates)


def test_a_tensor_too_small_for_tables_is_stored(calibrated: Artifact):
    """`mean` is sixteen numbers; its cut has tables for nothing and rates all the same."""
    position = calibrated.manifest.position("mean")
    assert read_tables(
        calibrated.read_tables(position) or b"", calibrated.manifest.egress(position)
    ) == [None]
    assert all(rate.agreement.value == 100 for rate in calibrations(calibrated)[position - 1].rates)


# What is refused


def test_an_artifact_without_cuts_is_a_wrong_call(
    tiny_model: Path, images: Path, tmp_path: Path, capsys: Capture
):
    graph = load_graph(tiny_model)
    recipe = recipe_of(graph.model, "tiny")
    split_model(graph, [], recipe, tiny_model, tmp_path)
    assert main(words(tmp_path, images)) == 2
    assert "nothing to calibrate" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nowhere", "input", "output"])
def test_what_is_no_cut_is_a_wrong_call(
    tiny_artifact: Path, images: Path, capsys: Capture, name: str
):
    assert main(words(tiny_artifact, images, "--cuts", name)) == 2
    err = capsys.readouterr().err
    assert load_artifact(tiny_artifact).manifest.cuts[0].name in err
    assert "Traceback" not in err


def test_a_folder_without_pictures_is_a_wrong_call(
    tiny_artifact: Path, tmp_path: Path, capsys: Capture
):
    assert main(words(tiny_artifact, tmp_path)) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_too_few_pictures_are_a_wrong_call(
    tiny_artifact: Path, images: Path, tmp_path: Path, capsys: Capture
):
    for path in sorted(images.glob("*.png"))[:19]:
        shutil.copy(path, tmp_path)
    assert main(words(tiny_artifact, tmp_path)) == 2
    assert "19 pictures; at least 20 are needed" in capsys.readouterr().err


def test_a_damaged_picture_fails_and_is_named(
    tiny_artifact: Path, images: Path, tmp_path: Path, capsys: Capture
):
    folder = Path(shutil.copytree(images, tmp_path / "images"))
    (folder / "07.png").write_bytes(b"no picture")
    assert main(words(tiny_artifact, folder, "-o", str(tmp_path / "out"))) == 1
    assert "07.png" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "more",
    [["--floors", ""], ["--floors", "0"], ["--floors", "101"], ["--limit", "19"], ["--cut", "x"]],
)
def test_flags_that_make_no_sense_are_a_wrong_call(
    tiny_artifact: Path, images: Path, capsys: Capture, more: list[str]
):
    assert main(["calibrate", str(tiny_artifact), "--images", str(images), *more]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_folder_that_is_no_artifact_fails(tmp_path: Path, images: Path, capsys: Capture):
    assert main(words(tmp_path, images)) == 1
    assert "splitserve split" in capsys.readouterr().err


def test_tensors_without_a_batch_axis_may_cross_a_cut(tmp_path: Path):
    """A vector and a scalar that only the tail reads travel as they are, beside the features."""
    generator = np.random.default_rng(0)
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Mul", ["y", "gain"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["moved"]),
        helper.make_node("GlobalAveragePool", ["moved"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["scores"]),
    ]
    shapes = {"x": ["batch", 8, 6, 6], "gain": [8, 1, 1], "offset": []}
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    ]
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 8])
    model = helper.make_model(
        helper.make_graph(nodes, "late", values, [scores]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=10,
    )
    onnx.save(model, str(tmp_path / "late.onnx"))
    folder = tmp_path / "inputs"
    folder.mkdir()
    for seed in range(24):
        np.savez(
            folder / f"{seed:02}.npz",
            x=generator.standard_normal((1, 8, 6, 6)).astype(np.float32),
            gain=generator.uniform(0.5, 2, (8, 1, 1)).astype(np.float32),
            offset=np.float32(seed),
        )
    target = tmp_path / "artifact"
    name = "gain+offset+y"
    assert main(["split", str(tmp_path / "late.onnx"), "-o", str(target), "--cuts", name]) == 0
    assert main(words(target, folder)) == 0
    artifact = load_artifact(target)
    assert artifact.manifest.cuts[0].name == name
    tables = read_tables(artifact.read_tables(1) or b"", artifact.manifest.egress(1))
    assert [table is not None for table in tables] == [False, False, True]
    assert all(rate.agreement.value >= rate.floor for rate in calibrations(artifact)[0].rates)
