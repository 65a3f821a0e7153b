"""Networks of every shape, cut at every place where one tensor crosses, against the whole."""

from pathlib import Path

import numpy as np
import pytest
from graphs import write_model
from networks import NETWORKS, WORDS, googlenet, transformer, unet

from splitserve.artifact import load_artifact
from splitserve.split import Recipe, choose_cuts, compare_cuts, find_cuts, load_graph, split_model
from splitserve.split.graph import GraphView, view
from splitserve.split.verify import compare_artifact
from splitserve.tensors import DTYPES, Tensors

# A cut that every network must have, so that none passes because nothing was tried.
LANDMARKS = {
    "googlenet": {"stem", "a", "b", "mean", "pool"},
    "unet": {"up0", "thin"},
    "transformer": {"layer1", "sentence"},
    "if": {"early", "chosen", "late"},
    "loop": {"early", "looped", "late"},
}


def inputs_of(graph: GraphView, batch: int, side: int = 8) -> Tensors:
    """Seeded noise; integers are words and masks."""
    generator = np.random.default_rng(batch)
    tensors = {}
    for spec in graph.inputs:
        first, *rest = spec.shape
        shape = [first if isinstance(first, int) else batch]
        shape += [size if isinstance(size, int) else side for size in rest]
        high = WORDS if spec.name == "words" else 2
        values = (
            generator.standard_normal(shape)
            if DTYPES[spec.dtype].kind == "f"
            else generator.integers(0, high, shape)
        )
        tensors[spec.name] = values.astype(spec.dtype)
    return tensors


@pytest.mark.parametrize("name", NETWORKS)
def test_every_single_cut_recomposes(tmp_path: Path, name: str) -> None:
    path = write_model(NETWORKS[name](), tmp_path / "model.onnx")
    graph = load_graph(path)
    cuts = find_cuts(graph)
    assert {cut.name for cut in cuts} >= LANDMARKS[name]
    inputs = [inputs_of(graph, batch) for batch in (1, 3)]
    errors = list(compare_cuts(graph, cuts, inputs))
    assert len(errors) == 2 * len(cuts)
    assert [error for error in errors if not error.is_exact] == []
    assert max(error.relative for error in errors) <= 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_the_artifact_of_its_useful_cuts_recomposes(tmp_path: Path, name: str) -> None:
    path = write_model(NETWORKS[name](), tmp_path / "model.onnx")
    graph = load_graph(path)
    cuts = choose_cuts(graph)
    split_model(graph, cuts, Recipe(name=name), path, tmp_path / "artifact")
    inputs = [inputs_of(graph, batch) for batch in (1, 3)]
    errors = list(compare_artifact(graph, load_artifact(tmp_path / "artifact"), inputs))
    assert len(errors) >= 2
    assert all(error.is_good for error in errors)


@pytest.mark.parametrize("opset", [11, 13, 15, 17])
@pytest.mark.parametrize("make", [googlenet, unet])
def test_opsets_from_eleven_recompose(make, opset: int) -> None:
    graph = view(make(opset))
    errors = list(compare_cuts(graph, find_cuts(graph), [inputs_of(graph, 2)]))
    assert errors
    assert all(error.is_good for error in errors)


@pytest.mark.parametrize("opset", [18, 21, 23])
def test_newer_opsets_recompose(opset: int) -> None:
    graph = view(unet(opset))
    errors = list(compare_cuts(graph, find_cuts(graph), [inputs_of(graph, 2)]))
    assert errors
    assert all(error.is_good for error in errors)


def test_a_mask_that_later_layers_read_keeps_single_cuts_out_of_the_earlier_ones() -> None:
    names = [cut.name for cut in find_cuts(view(transformer()))]
    assert names
    assert not any(name.startswith(("embedding", "layer0")) for name in names)
