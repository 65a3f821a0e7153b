"""Sizes that an operator fixes, and sizes that the graph itself settles."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import floats, model_of, write_model
from networks import Builder, googlenet, transformer, unet
from onnx import TensorProto, helper

from splitserve.artifact import load_artifact
from splitserve.cli import main
from splitserve.errors import UsageError
from splitserve.split import load_graph
from splitserve.split.graph import view
from splitserve.split.shapes import parse_shapes, sizes_of

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def free(tmp_path: Path) -> Path:
    """A U-Net whose height and width are free."""
    return write_model(unet(), tmp_path / "unet.onnx")


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("image=1x3x320x256", (1, 3, 320, 256)),
        ("image=Nx3x8x8", (None, 3, 8, 8)),
        ("image=?x3xnx8", (None, 3, None, 8)),
        ("image=7", (7,)),
        ("image=2147483647", (2147483647,)),
    ],
)
def test_shape_is_read(text: str, sizes: tuple[int | None, ...]) -> None:
    assert parse_shapes([text]) == {"image": sizes}


@pytest.mark.parametrize(
    "text",
    [
        "image", "image=", "=1x3", "image=1x", "image=0x3", "image=-1x3", "image=1xAx3", "a=1,5",
        "x=1x3x99999999999999999999x32", "x=2147483648", f"x={'9' * 5000}",
    ],
)  # fmt: skip
def test_shape_of_another_form_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match=r"write NAME=1x3x320x320; N or \? keeps a dimension"):
        parse_shapes([text])


def test_input_named_twice_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="'a' twice"):
        parse_shapes(["a=1x2", "a=1x2"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("picture=1x1x8x8", "no input 'picture'; there are: image"),
        ("image=1x8x8", "image: 3 sizes where it has 4"),
        ("image=1x3x8x8", "image, axis 1: 3 where the model has 1"),
    ],
)
def test_shape_that_does_not_fit_the_model_is_a_usage_error(
    free: Path, text: str, reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        load_graph(free, parse_shapes([text]))


def test_dimension_of_two_inputs_has_one_size(tmp_path: Path) -> None:
    path = write_model(transformer(), tmp_path / "model.onnx")
    graph = load_graph(path, parse_shapes(["words=Nx6"]))
    assert [spec.shape for spec in graph.inputs] == [("batch", 6), ("batch", 6)]
    with pytest.raises(UsageError, match=r"mask, axis 1: 7 where 'tokens' is 6 already"):
        load_graph(path, parse_shapes(["words=Nx6", "mask=Nx7"]))


def test_fixed_sizes_reach_every_tensor_the_figures_and_the_manifest(
    free: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert main(["cuts", str(free), "--shape", "image=Nx1x32x48", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    rows = {row["name"]: row for row in document["cuts"]}
    assert err == ""
    assert rows["up0"]["shape"] == ["batch", 4, 32, 48]
    assert rows["up0"]["raw_bytes"] == 4 * 32 * 48 * 4
    # level0, level1, bottom, up1, up0, thin: outputs times kernel times channels.
    assert document["macs"] == (
        32 * 48 * 4 * 9 * 1 + 16 * 24 * 8 * 9 * 4 + 8 * 12 * 16 * 9 * 8
        + 16 * 24 * 8 * 9 * 24 + 32 * 48 * 4 * 9 * 12 + 32 * 48 * 4
    )  # fmt: skip
    target = str(tmp_path / "a")
    words = ["--shape", "image=Nx1x32x48", "--cuts", "up0", "-o", target]
    assert main(["split", str(free), *words]) == 0
    manifest = load_artifact(tmp_path / "a").manifest
    assert manifest.inputs[0].shape == ("batch", 1, 32, 48)
    assert manifest.outputs[0].shape == ("batch", 1, 32, 48)
    assert manifest.cuts[0].egress[0].shape == ("batch", 4, 32, 48)
    assert main(["verify", target, "--model", str(free)]) == 0
    assert main(["verify", str(free), "--shape", "image=1x1x32x48"]) == 0


@pytest.mark.parametrize("command", ["cuts", "verify"])
def test_free_height_is_told_with_its_option(free: Path, capsys: Capture, command: str) -> None:
    main([command, str(free), "--json"])
    err = capsys.readouterr().err
    assert "image: height, width free" in err
    assert "--shape 'image=Nx1x<height>x<width>'" in err


def test_free_batch_is_told_nothing(tmp_path: Path, capsys: Capture) -> None:
    path = write_model(googlenet(), tmp_path / "model.onnx")
    assert main(["cuts", str(path), "--json"]) == 0
    assert capsys.readouterr().err == ""


def test_sizes_of_specs_are_what_fixes_them_again(free: Path) -> None:
    graph = load_graph(free, parse_shapes(["image=Nx1x16x16"]))
    assert load_graph(free, sizes_of(graph.inputs)).specs == graph.specs


def detector(opset: int) -> onnx.ModelProto:
    """Two scales flattened by Shape, Gather and Concat; both outputs call their length `dim`."""
    made = Builder()
    made.constant("zero", 0, np.int64)
    made.constant("rest", [-1, 2], np.int64)
    last = "image"
    for scale, sizes in (("large", (1, 2, 3)), ("small", (2, 2, 3))):
        last = made.conv(f"{scale}.conv", last, sizes, stride=2)
        made.add("Transpose", f"{scale}.turned", last, perm=[0, 2, 3, 1])
        made.add("Gather", f"{scale}.batch", made.add("Shape", f"{scale}.shape", last), "zero")
        first = made.add(
            "Reshape",
            f"{scale}.first",
            f"{scale}.batch",
            made.constant(f"{scale}.1", [1], np.int64),
        )
        made.add("Concat", f"{scale}.wanted", first, "rest", axis=0)
        made.add("Reshape", scale, f"{scale}.turned", f"{scale}.wanted")
    outputs = [floats(name, ["batch", "dim", 2]) for name in ("large", "small")]
    return made.model([floats("image", ["batch", 1, "height", "width"])], outputs, opset)


@pytest.mark.parametrize("opset", [11, 17])
def test_sizes_that_are_computed_are_settled(tmp_path: Path, opset: int) -> None:
    path = write_model(detector(opset), tmp_path / "model.onnx")
    fixed = load_graph(path, parse_shapes(["image=Nx1x16x24"]))
    assert [spec.shape for spec in fixed.outputs] == [("batch", 8 * 12, 2), ("batch", 4 * 6, 2)]
    free = load_graph(path)
    assert [spec.shape[0] for spec in free.outputs] == ["batch", "batch"]
    lengths = [spec.shape[1] for spec in free.outputs]
    assert len(set(lengths)) == 2  # one name would claim that both have one size


def test_multiply_adds_behind_a_computed_reshape_are_counted() -> None:
    made = Builder()
    made.constant("minus", [-1], np.int64)
    made.add("Shape", "shape", "x")
    made.add(
        "Slice",
        "first",
        "shape",
        made.constant("0", [0], np.int64),
        made.constant("1", [1], np.int64),
    )
    made.add("Concat", "wanted", "first", "minus", axis=0)
    made.add("Reshape", "flat", "x", "wanted")
    made.add("MatMul", "y", "flat", made.noise("w", 12, 5))
    model = made.model([floats("x", ["batch", 3, 4])], [floats("y", ["batch", 5])], 11)
    assert view(model).macs == 12 * 5


def test_names_of_integers_and_floats_stay_apart() -> None:
    kind = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 4])
    node = helper.make_node("Cast", ["ids"], ["y"], to=TensorProto.FLOAT)
    graph = view(model_of([node], [kind], [floats("y", ["batch", 4])]))
    assert (graph.inputs[0].dtype, graph.outputs[0].dtype) == ("int64", "float32")
