"""The CIFAR-10 ResNets, with seeded weights in the layouts that their makers publish."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

from splitserve.cli import main
from splitserve.split import find_cuts, load_graph, recipe_of
from splitserve.split.command_export import CHECKOUT

State = dict[str, torch.Tensor]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_export", CHECKOUT / name / "export.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def norm(name: str, width: int) -> State:
    return {
        f"{name}.weight": torch.rand(width) + 0.5, f"{name}.bias": torch.randn(width) / 10,
        f"{name}.running_mean": torch.randn(width) / 10,
        f"{name}.running_var": torch.rand(width) + 0.5,
    }  # fmt: skip


def conv(name: str, outputs: int, inputs: int, kernel: int = 3) -> State:
    values = torch.randn(outputs, inputs, kernel, kernel)
    return {f"{name}.weight": values / (inputs * kernel * kernel) ** 0.5}


def weights_of(blocks: int) -> State:
    """Names and shapes of the checkpoints of depth 6 x blocks + 2."""
    torch.manual_seed(0)
    state = conv("conv1", 16, 3) | norm("bn1", 16)
    inputs = 16
    for layer, width in (("layer1", 16), ("layer2", 32), ("layer3", 64)):
        for block in range(blocks):
            name = f"{layer}.{block}"
            state |= conv(f"{name}.conv1", width, inputs) | norm(f"{name}.bn1", width)
            state |= conv(f"{name}.conv2", width, width) | norm(f"{name}.bn2", width)
            inputs = width
    return state | {"linear.weight": torch.randn(10, 64) / 8, "linear.bias": torch.randn(10)}


def weights_of_eight() -> State:
    """Names and shapes of MLPerf Tiny's checkpoint."""
    torch.manual_seed(0)
    sizes = [(16, 3, 3), (16, 16, 3), (16, 16, 3), (32, 16, 3), (32, 32, 3), (32, 16, 1),
             (64, 32, 3), (64, 64, 3), (64, 32, 1)]  # fmt: skip
    state: State = {}
    for index, (outputs, inputs, kernel) in enumerate(sizes):
        state |= conv(f"conv{index}", outputs, inputs, kernel)
        state[f"conv{index}.bias"] = torch.randn(outputs) / 10
    for index, width in enumerate((16, 16, 16, 32, 32, 64, 64)):
        state |= norm(f"bn{index}", width)
    return state | {"fc.weight": torch.randn(10, 64) / 8, "fc.bias": torch.randn(10)}


def reference(state: State, x: torch.Tensor, blocks: int) -> torch.Tensor:
    """The same network written flat, straight from the paper."""

    def layer(conv: str, norm: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        y = torch.nn.functional.conv2d(x, state[f"{conv}.weight"], None, stride, 1)
        facts = [state[f"{norm}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
        return torch.nn.functional.batch_norm(y, *facts, eps=1e-5)

    x = layer("conv1", "bn1", x).relu()
    for stage in range(3):
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            grows = stage > 0 and block == 0
            y = layer(f"{name}.conv1", f"{name}.bn1", x, 2 if grows else 1).relu()
            y = layer(f"{name}.conv2", f"{name}.bn2", y)
            if grows:
                half = torch.zeros(len(x), x.shape[1] // 2, *y.shape[2:])
                x = torch.cat([half, x[:, :, ::2, ::2], half], 1)
            x = (x + y).relu()
    return x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]


@pytest.mark.parametrize(("blocks", "parameters"), [(3, 269_722), (5, 464_154), (9, 853_018)])
def test_depth_follows_from_the_weights(tmp_path: Path, blocks: int, parameters: int) -> None:
    save_file(weights_of(blocks), tmp_path / "w.safetensors")
    network = script("cifar_resnet").load_network(tmp_path / "w.safetensors")
    assert sum(value.numel() for value in network.parameters()) == parameters
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        found, wanted = network(x), reference(weights_of(blocks), x, blocks)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)  # another order of sums


def test_resnet_eight_has_the_published_size(tmp_path: Path) -> None:
    save_file(weights_of_eight(), tmp_path / "w.safetensors")
    network = script("cifar_resnet8").load_network(tmp_path / "w.safetensors")
    # Weights and biases, and four numbers a channel of the batch norms.
    assert sum(value.numel() for value in network.state_dict().values()) - 7 == 78_666


@pytest.mark.parametrize(
    ("name", "state", "cuts"),
    [
        ("cifar_resnet", weights_of(3), {"stem", *(f"block{i}" for i in range(9)), "pool"}),
        ("cifar_resnet8", weights_of_eight(), {"stem", "block0", "block1", "block2", "pool"}),
    ],
    ids=["cifar_resnet", "cifar_resnet8"],
)
def test_export_writes_what_torch_computes(
    tmp_path: Path, name: str, state: State, cuts: set[str]
) -> None:
    weights, target = tmp_path / "w.safetensors", tmp_path / "net.onnx"
    save_file(state, weights)
    assert main(["export", name, "--weights", str(weights), "-o", str(target)]) == 0
    graph = load_graph(target)
    assert {cut.name for cut in find_cuts(graph)} >= cuts
    assert graph.inputs[0].shape == ("batch", 3, 32, 32)
    recipe = recipe_of(graph.model, "")
    assert (recipe.name, recipe.labels[3], len(recipe.labels)) == (name, "cat", 10)
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    with torch.inference_mode():
        wanted = script(name).load_network(weights)(torch.from_numpy(x)).numpy()
    # Folding batch norms reorders float32 sums.
    np.testing.assert_allclose(session.run(None, {"image": x})[0], wanted, rtol=0, atol=1e-4)


def test_missing_weights_are_a_wrong_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "cifar_resnet", "-o", str(tmp_path / "x.onnx")]) == 2
    assert "--weights" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["cifar_resnet", "cifar_resnet8"])
@pytest.mark.parametrize("content", ["noise", "other"])
def test_other_weights_are_refused_in_one_line(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / "w.safetensors"
    if content == "noise":
        path.write_bytes(b"not weights at all")
    else:
        save_file(conv("conv1", 16, 3) | {"fc.weight": torch.zeros(10, 64)}, path)
    with pytest.raises(ValueError, match=r"w\.safetensors: not weights of"):
        script(name).load_network(path)
