"""Pictures that fit batch norms: found in a graph, matched, classified, and refused without any."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from splitserve.artifact import Preprocess
from splitserve.audit.attacks import data_free, steps_of
from splitserve.audit.budget import Budget
from splitserve.audit.images import procedural
from splitserve.audit.laboratory import Laboratory, Material, Target
from splitserve.audit.subject import Transport
from splitserve.audit.synthesis import (
    Norm,
    Synthesis,
    Whole,
    find_norms,
    norm_distance,
    synthesise,
)
from splitserve.audit.torch_graph import TorchGraph
from splitserve.errors import GraphError
from splitserve.split import choose_cuts, load_graph, split_model
from splitserve.split.recipe import Recipe

CHANNELS, CLASSES, SIDE = 6, 3, 12


def tiny_net(*, has_norm: bool = True) -> onnx.ModelProto:
    """Convolution, batch norm, ReLU, mean and a linear layer."""
    draw = np.random.default_rng(0)
    weights = {
        "w": draw.normal(0, 0.5, (CHANNELS, 3, 3, 3)),
        "scale": np.ones(CHANNELS),
        "bias": np.zeros(CHANNELS),
        "mean": draw.normal(0, 0.3, CHANNELS),
        "variance": draw.uniform(0.05, 0.4, CHANNELS),
        "v": draw.normal(0, 2, (CHANNELS, CLASSES)),
        "b": np.zeros(CLASSES),
    }
    norm = ["c", "scale", "bias", "mean", "variance"]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", norm, ["n"])
        if has_norm
        else helper.make_node("Identity", ["c"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "v", "b"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()],
    )
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10)


def whole_of(model: onnx.ModelProto) -> Whole:
    graph = TorchGraph([model]).requires_grad_(requires_grad=False)

    def see(pictures: Tensor, wanted: Sequence[str]) -> list[Tensor]:
        return graph({"x": (pictures - 0.5) / 0.25}, wanted)

    return Whole(see, "y", find_norms([model]))


def far(whole: Whole, pictures: np.ndarray) -> float:
    seen = whole.see(torch.from_numpy(pictures), [norm.name for norm in whole.norms])
    return float(norm_distance(whole.norms, seen))


def test_norms_are_found_at_their_inputs():
    (norm,) = find_norms([tiny_net()])
    assert norm.name == "c"
    assert norm.mean.shape == norm.variance.shape == (CHANNELS,)
    assert float(norm.variance.min()) > 0
    assert not find_norms([tiny_net(has_norm=False)])


def test_the_distance_is_nothing_where_the_statistics_agree():
    values = torch.randn(8, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    norm = Norm("c", values.mean((0, 2, 3)), values.var((0, 2, 3), correction=0))
    assert float(norm_distance([norm], [values])) < 1e-5
    assert float(norm_distance([norm], [2 * values])) > 1


def test_pictures_move_to_the_norms_and_to_every_class():
    whole = whole_of(tiny_net())
    start = procedural(24, SIDE, SIDE, seed=5)
    untouched = start.copy()
    ticks: list[int] = []
    made = synthesise(whole, start, Synthesis(batch=12), lambda: ticks.append(1))
    assert made.shape == start.shape
    assert made.dtype == np.float32
    assert made.min() >= 0
    assert made.max() <= 1
    assert np.array_equal(start, untouched)
    assert len(ticks) == 2 * 60
    assert far(whole, made[:12]) < far(whole, start[:12]) / 2
    (logits,) = whole.see(torch.from_numpy(made), ["y"])
    assert np.bincount(logits.argmax(1).numpy(), minlength=CLASSES).min() >= 4


def test_the_same_seed_gives_the_same_pictures():
    whole = whole_of(tiny_net())
    start = procedural(6, SIDE, SIDE, seed=5)
    runs = [synthesise(whole, start, Synthesis(steps=4, seed=s), lambda: None) for s in (1, 1, 2)]
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_a_model_without_batch_norm_has_nothing_to_match():
    whole = whole_of(tiny_net(has_norm=False))
    with pytest.raises(GraphError, match="nothing to match"):
        synthesise(whole, procedural(2, SIDE, SIDE, seed=5), Synthesis(), lambda: None)


def test_an_audit_of_a_model_with_batch_norms_learns_from_matched_pictures(tmp_path: Path):
    model = tmp_path / "normed.onnx"
    onnx.save(tiny_net(), model)
    recipe = Recipe(
        name="normed",
        preprocess=Preprocess(
            resize_short_side=SIDE, crop=(SIDE, SIDE), mean=(127.0,) * 3, std=(128.0,) * 3
        ),
    )
    graph = load_graph(model)
    artifact = split_model(graph, choose_cuts(graph, ["r"]), recipe, model, tmp_path / "artifact")
    pictures = procedural(8, SIDE, SIDE, 1)
    lab = Laboratory(
        artifact,
        [Target(1, "r", ("r",), Transport(None, "none"))],
        Material(pictures, pictures[:0], pictures),
        Budget("tiny", 6, 40, 4, 1, 2, 2, 1, 5),
        seed=0,
    )
    ticks: list[None] = []
    control, loot = data_free(lab, lambda: ticks.append(None))
    assert control.defence == "control"
    assert lab.matched is not None
    assert lab.matched.shape == (4, 3, SIDE, SIDE)
    assert (lab.matched != lab.made[:4]).any()
    assert loot.settings["learned_on"] == 40
    assert len(ticks) == steps_of("data-free", [lab])
