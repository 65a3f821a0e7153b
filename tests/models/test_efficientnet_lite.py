"""Lite1 and Lite2: the larger networks of the family, from the script of Lite0."""

import math
import tomllib
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from splitserve.picture import read_picture
from splitserve.split import find_cuts, load_graph, recipe_of
from splitserve.split.command_export import CHECKOUT, export

# Parameters and multiply-adds: of the published checkpoints and of TensorFlow's table.
FACTS = {
    "efficientnet_lite1": (240, 5_416_680, 600e6),
    "efficientnet_lite2": (260, 6_092_072, 860e6),
}


@pytest.fixture(scope="module", params=FACTS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lite") / f"{request.param}.onnx"
    export(CHECKOUT / request.param, path)
    return path


def test_network_is_the_published_one(exported: Path) -> None:
    side, parameters, macs = FACTS[exported.stem]
    graph = load_graph(exported)
    assert graph.inputs[0].shape == ("batch", 3, side, side)
    assert graph.outputs[0].shape == ("batch", 1000)
    assert math.isclose(graph.macs, macs, rel_tol=0.02)
    stored = sum(math.prod(value.dims) for value in graph.model.graph.initializer)
    # Batch norms are folded: four numbers a channel become one bias.
    assert 0.98 * parameters < stored < parameters
    names = {cut.name for cut in find_cuts(graph)}
    assert {"stem", *(f"block{index}" for index in range(21)), "head", "pool"} <= names


def test_picture_gets_the_name_of_what_it_shows(exported: Path, pictures: Path) -> None:
    recipe = recipe_of(load_graph(exported).model, "")
    assert recipe.name == exported.stem
    assert recipe.preprocess is not None
    session = onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
    images = [
        read_picture(pictures / name, recipe.preprocess) for name in ("coffee.png", "chelsea.png")
    ]
    best = session.run(None, {"image": np.concatenate(images)})[0].argmax(1)
    assert recipe.labels[best[0]] == "espresso"
    assert recipe.labels[best[1]] in {"tiger cat", "tabby", "Egyptian cat"}


@pytest.mark.parametrize("name", FACTS)
def test_recipe_crops_seven_eighths(name: str) -> None:
    recipe = tomllib.loads((CHECKOUT / name / "recipe.toml").read_text())["preprocess"]
    assert recipe["crop"] == [FACTS[name][0]] * 2
    assert recipe["resize_short_side"] == round(recipe["crop"][0] / 0.875)
