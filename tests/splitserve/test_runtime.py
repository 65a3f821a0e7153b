"""Segments run from any position to any, and what ONNX Runtime refuses."""

import hashlib
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import TINY_RECIPE, fork_net, tiny_net, write_model

from splitserve.artifact import Artifact, load_artifact
from splitserve.errors import ArtifactError, RuntimeFailureError
from splitserve.runtime import Chain, Graph, RuntimeOptions, open_chain, write_optimised
from splitserve.split import choose_cuts, load_graph, split_model
from splitserve.tensors import Tensors

PLAIN = RuntimeOptions(threads=1, optimise=False)


@pytest.fixture(scope="module")
def chain(tiny_artifact: Path) -> Chain:
    return open_chain(load_artifact(tiny_artifact), PLAIN)


@pytest.fixture(scope="module")
def image() -> Tensors:
    shape = (2, 3, 32, 32)
    return {"image": np.random.default_rng(3).standard_normal(shape).astype(np.float32)}


def whole(image: Tensors) -> np.ndarray:
    """Run the model with ONNX Runtime alone."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = tiny_net().SerializeToString()
    session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    (logits,) = session.run(None, dict(image))
    return logits


@pytest.mark.parametrize(
    ("first", "second"), list(itertools.combinations_with_replacement(range(5), 2))
)
def test_slices_of_the_chain_equal_the_whole(
    chain: Chain, image: Tensors, first: int, second: int
) -> None:
    assert len(chain) == 4
    tensors = chain.run(image, 0, first)
    tensors = chain.run(tensors, first, second)
    assert np.array_equal(chain.run(tensors, second, 4)["logits"], whole(image))


def test_empty_slice_gives_back_what_it_got(chain: Chain, image: Tensors) -> None:
    assert chain.run(image, 0, 0) is image


def test_slice_answers_with_the_egress_tensors_of_its_end(
    tiny_artifact: Path, chain: Chain, image: Tensors
) -> None:
    manifest = load_artifact(tiny_artifact).manifest
    for position in range(1, 5):
        assert list(chain.run(image, 0, position)) == [s.name for s in manifest.egress(position)]


def test_fused_head_answers_what_its_segments_do(lite0_artifact: Path) -> None:
    artifact = load_artifact(lite0_artifact)
    position = artifact.manifest.position("block5")
    assert artifact.manifest.cuts[position - 1].fused_head is not None
    shape = (1, 3, 224, 224)
    image = {"image": np.random.default_rng(3).standard_normal(shape).astype(np.float32)}
    plain = open_chain(artifact, PLAIN)
    fused = open_chain(artifact, PLAIN, fused=[position])
    assert len(fused) == len(plain)
    expected = plain.run(image, 0, position)["block5"]
    assert np.array_equal(fused.run(image, 0, position)["block5"], expected)


def test_optimised_run_stays_within_the_tolerance(tiny_artifact: Path, image: Tensors) -> None:
    chain = open_chain(load_artifact(tiny_artifact), RuntimeOptions(threads=1))
    # Fused kernels add in another order.
    np.testing.assert_allclose(chain.run(image, 0, 4)["logits"], whole(image), rtol=1e-4, atol=1e-5)


def test_missing_input_is_named(chain: Chain, image: Tensors) -> None:
    with pytest.raises(RuntimeFailureError, match="the graph's input 'stem' is missing"):
        chain.run(image, 1, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 3, 31, 32), np.float32),
        np.zeros((1, 3, 32, 32), np.float64),
        np.zeros((3, 32, 32), np.float32),
        np.array("text"),
    ],
)
def test_input_of_another_shape_or_type_fails_with_our_error(
    chain: Chain, wrong: np.ndarray
) -> None:
    with pytest.raises(RuntimeFailureError, match="ONNX Runtime failed"):
        chain.run({"image": wrong}, 0, 1)


@pytest.mark.parametrize("content", [b"", b"not a model", tiny_net().SerializeToString()[:999]])
def test_bytes_that_are_no_model_are_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(RuntimeFailureError, match="ONNX Runtime cannot load the graph"):
        Graph(content, PLAIN)
    with pytest.raises(RuntimeFailureError, match="ONNX Runtime cannot load the graph"):
        write_optimised(content, tmp_path / "optimised.onnx")


def test_graph_names_its_ends_and_providers(chain: Chain) -> None:
    graph = Graph(tiny_net().SerializeToString(), PLAIN)
    assert (graph.inputs, graph.outputs) == (("image",), ("logits",))
    assert graph.providers == ("CPUExecutionProvider",)
    assert chain.providers == ("CPUExecutionProvider",)


def test_loading_and_running_prints_nothing(tiny_artifact: Path) -> None:
    script = (
        "import sys, numpy\n"
        "from pathlib import Path\n"
        "from splitserve.artifact import Artifact, load_artifact\n"
        "from splitserve.runtime import RuntimeOptions, open_chain\n"
        "chain = open_chain(load_artifact(Path(sys.argv[1])), RuntimeOptions())\n"
        "chain.run({'image': numpy.zeros((1, 3, 32, 32), numpy.float32)}, 0, len(chain))\n"
    )
    words = [sys.executable, "-W", "error", "-c", script, str(tiny_artifact)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> Artifact:
    """The artifact with another manifest over the same files."""
    path = folder / "manifest.json"
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))
    return load_artifact(folder)


def rename_output(fields: dict[str, Any]) -> None:
    fields["outputs"][0]["name"] = "nope"


def shorten_output(fields: dict[str, Any]) -> None:
    fields["outputs"][0]["shape"] = ["batch", 3]


def change_dtype(fields: dict[str, Any]) -> None:
    fields["cuts"][0]["egress"][0]["dtype"] = "float16"


def swap_heads(fields: dict[str, Any]) -> None:
    fields["cuts"][2]["fused_head"] = fields["cuts"][1]["fused_head"]


@pytest.mark.parametrize("change", [rename_output, shorten_output, change_dtype, swap_heads])
def test_graphs_that_do_not_fit_the_manifest_are_refused(
    lite0_artifact: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(lite0_artifact, folder)
    open_chain(load_artifact(folder), RuntimeOptions(threads=1), fused=[3])
    artifact = rewritten(folder, change)
    with pytest.raises(ArtifactError, match="does not fit the manifest"):
        open_chain(artifact, RuntimeOptions(threads=1), fused=[3])


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An artifact whose picture crosses every cut, and whose later cuts share two tensors."""
    folder = tmp_path_factory.mktemp("forked")
    path = write_model(fork_net(reads_image_late=True), folder / "fork.onnx")
    graph = load_graph(path)
    cuts = choose_cuts(graph, ["image+stem", "image+a+b", "image+b+c", "image+pool"])
    return split_model(graph, cuts, TINY_RECIPE, path, folder / "artifact")


def test_segments_take_what_they_read_and_give_what_is_not_there_yet(forked: Artifact) -> None:
    ends = [Graph(forked.read_segment(index), PLAIN) for index in range(5)]
    assert [(graph.inputs, graph.outputs) for graph in ends] == [
        (("image",), ("stem",)),
        (("stem",), ("a", "b")),
        (("a",), ("c",)),
        (("b", "c"), ("pool",)),
        (("image", "pool"), ("logits",)),
    ]
    heads = {
        position: Graph(content, PLAIN)
        for position in range(1, 5)
        if (content := forked.read_fused_head(position))
    }
    assert {p: (head.inputs, head.outputs) for p, head in heads.items()}[2] == (
        ("image",), ("a", "b"),
    )  # fmt: skip


@pytest.mark.parametrize("fused", [(), (2, 3)])
def test_chain_carries_tensors_past_the_segments_that_do_not_make_them(
    forked: Artifact, image: Tensors, fused: tuple[int, ...]
) -> None:
    chain = open_chain(forked, PLAIN, fused)
    wanted = Graph(fork_net(reads_image_late=True).SerializeToString(), PLAIN).run(image)
    for position in range(6):
        there = chain.run(image, 0, position)
        assert list(there) == [spec.name for spec in forked.manifest.egress(position)]
        answer = chain.run(there, position, 5)
        assert np.array_equal(answer["logits"], wanted["logits"])


def test_a_carried_tensor_that_is_missing_is_named(forked: Artifact, image: Tensors) -> None:
    chain = open_chain(forked, PLAIN)
    there = dict(chain.run(image, 0, 1))
    del there["image"]
    with pytest.raises(RuntimeFailureError, match="tensor 'image', which crosses here, is missing"):
        chain.run(there, 1, 2)


def other_order(fields: dict[str, Any]) -> None:
    fields["cuts"][1]["egress"].reverse()


def other_tensor(fields: dict[str, Any]) -> None:
    fields["cuts"][2]["egress"][1]["name"] = "nope"


def one_too_few(fields: dict[str, Any]) -> None:
    del fields["cuts"][1]["egress"][2]


def one_too_many(fields: dict[str, Any]) -> None:
    fields["cuts"][3]["egress"].append({"name": "nope", "dtype": "float32", "shape": [1]})


@pytest.mark.parametrize("change", [other_order, other_tensor, one_too_few, one_too_many])
def test_segments_that_do_not_fit_a_cut_of_several_tensors_are_refused(
    forked: Artifact, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(forked.root, folder)
    artifact = rewritten(folder, change)
    with pytest.raises(ArtifactError, match="does not fit the manifest"):
        open_chain(artifact, PLAIN)


def test_segment_whose_inputs_are_in_another_order_is_refused(
    forked: Artifact, tmp_path: Path
) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(forked.root, folder)
    model = onnx.load(folder / "s3.onnx")
    model.graph.input.insert(0, model.graph.input.pop())
    content = model.SerializeToString()
    (folder / "s3.onnx").write_bytes(content)

    def rehash(fields: dict[str, Any]) -> None:
        digest = hashlib.sha256(content).hexdigest()
        fields["segments"][3] |= {"sha256": digest, "bytes": len(content)}

    with pytest.raises(ArtifactError, match=r"from image\+b\+c to image\+pool does not"):
        open_chain(rewritten(folder, rehash), PLAIN)
