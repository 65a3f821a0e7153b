"""The query-free attacker's shadow head on a small net."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from graphs import conv, floats, model_of, relu, weight
from onnx import helper

from splitserve.artifact import load_artifact
from splitserve.audit.images import procedural
from splitserve.audit.optimise import Prey, optimise
from splitserve.audit.shadow import (
    FAINT,
    FreshGraph,
    ShadowRecipe,
    Tail,
    _role,
    tail_of,
    train_shadow,
    weights_kept,
)
from splitserve.audit.subject import Subject
from splitserve.audit.torch_graph import TorchGraph
from splitserve.errors import GraphError, UsageError


@pytest.fixture(scope="module")
def subject(calibrated_artifact: Path) -> Subject:
    return Subject(load_artifact(calibrated_artifact), 1)


@pytest.fixture(scope="module")
def tail(calibrated_artifact: Path) -> Tail:
    return tail_of(load_artifact(calibrated_artifact), 1)


def lesson(subject: Subject, tail: Tail, count: int = 64) -> tuple[np.ndarray, np.ndarray]:
    pictures = procedural(count, *subject.size, 3)
    with torch.no_grad():
        scores = tail.scores(subject.features(torch.from_numpy(pictures), tail.names))
    return pictures, scores.argmax(1).numpy()


def test_head_and_tail_are_the_model(subject: Subject, tail: Tail, calibrated_artifact: Path):
    artifact = load_artifact(calibrated_artifact)
    parts = [
        onnx.load_model_from_string(artifact.read_file(part)) for part in artifact.manifest.segments
    ]
    picture = torch.from_numpy(procedural(2, *subject.size, 0))
    (whole,) = TorchGraph(parts)({subject.input_name: subject.model_input(picture)}, [tail.output])
    found = tail.scores(subject.features(picture, tail.names))
    assert torch.allclose(found, whole, atol=1e-5)


def test_a_shadow_learns_without_the_heads_weights(subject: Subject, tail: Tail):
    before = [values.clone() for values in subject.graph.buffers()]
    fixed = [values.clone() for values in tail.graph.buffers()]
    ticks: list[int] = []
    recipe = ShadowRecipe(steps=40, batch=16)
    data = lesson(subject, tail)
    shadow = train_shadow(subject, tail, data, recipe, lambda: ticks.append(1))
    assert len(ticks) == len(shadow.losses) == 40
    assert np.mean(shadow.losses[-10:]) < np.mean(shadow.losses[:10])
    assert shadow.accuracy > np.bincount(data[1]).max() / len(data[1]) - 0.1
    for old, new in zip(before, subject.graph.buffers(), strict=True):
        assert torch.equal(old, new)
    for old, new in zip(fixed, tail.graph.buffers(), strict=True):
        assert torch.equal(old, new)
    pairs = zip(before, shadow.graph.buffers(), strict=True)
    assert any(old.shape == new.shape and not torch.equal(old, new) for old, new in pairs)


def test_a_shadow_stands_in_for_the_subject(subject: Subject, tail: Tail):
    data = lesson(subject, tail, 16)
    shadow = train_shadow(subject, tail, data, ShadowRecipe(steps=2), lambda: None)
    assert isinstance(shadow, Subject)
    prey = Prey(tail.names, subject.collect(data[0][:2], tail.names))
    found = optimise(shadow, prey, 1e-3, 3, lambda: None)
    assert found.pictures.shape == (2, 3, *subject.size)
    again = train_shadow(subject, tail, data, ShadowRecipe(steps=2), lambda: None)
    for one, other in zip(shadow.graph.buffers(), again.graph.buffers(), strict=True):
        assert torch.equal(one, other)


def test_classes_that_do_not_fit_are_refused(subject: Subject, tail: Tail):
    pictures, classes = lesson(subject, tail, 4)
    for wrong in (classes[:3], classes + 1000, classes - 1000):
        with pytest.raises(UsageError):
            train_shadow(subject, tail, (pictures, wrong), ShadowRecipe(steps=1), lambda: None)


def test_a_fresh_graph_keeps_the_architecture_and_forgets_the_weights():
    generator = np.random.default_rng(0)
    stored = [
        weight("a.weight", generator.normal(5, 1, (64, 3, 3, 3)).astype(np.float32)),
        weight("a.bias", np.full(64, 7, np.float32)),
        weight("half", np.array(0.5, np.float32)),
        *(weight(f"n.{k}", np.full(64, 3 + k, np.float32)) for k in range(4)),
        weight("shape", np.array([0, -1], np.int64)),
    ]
    nodes = [
        conv("a", "x"),
        helper.make_node("BatchNormalization", ["a", "n.0", "n.1", "n.2", "n.3"], ["n"]),
        relu("r", "n"),
        helper.make_node("Mul", ["r", "half"], ["m"]),
        helper.make_node("Reshape", ["m", "shape"], ["y"]),
    ]
    model = model_of(nodes, [floats("x", [1, 3, 8, 8])], [floats("y", [1, "n"])], stored)
    known = TorchGraph([model])
    fresh = FreshGraph(known, 0)
    values = list(fresh.buffers())
    drawn = next(one for one in values if one.shape == (64, 3, 3, 3))
    assert float(drawn.detach().std()) == pytest.approx(FAINT * (2 / 27) ** 0.5, rel=0.1)
    assert abs(float(drawn.detach().mean())) < 0.02
    (half,) = (one for one in values if one.dim() == 0)
    assert float(half) == 0.5
    assert len(fresh.learned) == 4  # weight and bias; factor and offset of the norm
    x = torch.randn(2, 3, 8, 8)
    assert fresh({"x": x}, ["y"])[0].shape == known({"x": x}, ["y"])[0].shape


def test_roles_follow_the_operator():
    assert _role(helper.make_node("Conv", ["x", "w", "b"], ["y"]), 1) == "weight"
    assert _role(helper.make_node("Gemm", ["x", "w", "b"], ["y"]), 2) == "offset"
    assert _role(helper.make_node("Mul", ["x", "w"], ["y"]), 1) == "factor"
    assert _role(helper.make_node("Pad", ["x", "w"], ["y"]), 1) == ""


def test_a_graph_whose_weights_a_shadow_would_keep_is_refused():
    """A slope and a weight that is turned before its product: nothing draws them anew."""
    nodes = [
        helper.make_node("PRelu", ["x", "slope"], ["p"]),
        helper.make_node("Transpose", ["w"], ["v"], perm=[1, 0]),
        helper.make_node("MatMul", ["p", "v"], ["y"]),
    ]
    stored = [weight("slope", np.ones(4, np.float32)), weight("w", np.ones((3, 4), np.float32))]
    model = model_of(nodes, [floats("x", [1, 4])], [floats("y", [1, 3])], stored)
    graph = TorchGraph([model])
    assert set(weights_kept(graph)) == {"slope", "w"}
    with pytest.raises(GraphError, match="no fresh weights for"):
        FreshGraph(graph, 0)
