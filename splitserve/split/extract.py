"""Write parts of a graph as graphs of their own, and the artifact that holds them."""

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import onnx

from splitserve.artifact import Artifact, Cut, Manifest, ModelFacts, Segment, write_artifact
from splitserve.errors import GraphError
from splitserve.split.cuts import CutCandidate
from splitserve.split.graph import GraphView
from splitserve.split.recipe import Recipe
from splitserve.tensors import DTYPES, TensorSpec

TOOLS = ("splitserve", "onnx", "onnxruntime", "numpy")


def extract(
    graph: GraphView, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> onnx.ModelProto:
    """Build the model that computes `outputs` from `inputs`.

    Initialisers and nodes that depend on them alone are copied into every part that reads them.
    The stock extractor is not used: it refuses tensors without value_info and walks the graph
    recursively.

    Raises:
        GraphError: an output depends on a model input that is not among `inputs`.
    """
    needed = {spec.name for spec in outputs} - {spec.name for spec in inputs}
    given = {spec.name for spec in inputs}
    picked = []
    for proto, node in zip(reversed(graph.model.graph.node), reversed(graph.nodes), strict=True):
        if needed.intersection(node.outputs):
            picked.append(proto)
            needed.difference_update(node.outputs)
            needed.update(name for name in node.inputs if name not in given)
    weights = [value for value in graph.model.graph.initializer if value.name in needed]
    missing = needed - {value.name for value in weights}
    if missing:
        raise GraphError(f"the part also needs {', '.join(sorted(missing))}")
    part = onnx.helper.make_graph(
        picked[::-1],
        graph.model.graph.name or "part",
        [_value_info(spec) for spec in inputs],
        [_value_info(spec) for spec in outputs],
        weights,
    )
    model = onnx.helper.make_model(part, opset_imports=graph.model.opset_import)
    model.ir_version = graph.model.ir_version
    model.producer_name = "splitserve"
    return model


def _value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(DTYPES[spec.dtype])
    return onnx.helper.make_tensor_value_info(spec.name, kind, list(spec.shape))


def split_model(
    graph: GraphView, cuts: Sequence[CutCandidate], recipe: Recipe, source: Path, target: Path
) -> Artifact:
    """Cut a model into consecutive segments and write the artifact folder.

    Args:
        graph: view of the model in `source`.
        cuts: where, in the order of the graph.
        recipe: name, preprocessing and labels.
        source: the ONNX file, for its hash.
        target: the folder to write.
    """
    borders = [graph.inputs, *((cut.tensor,) for cut in cuts), graph.outputs]
    marks = [0, *(cut.nodes for cut in cuts), len(graph.nodes)]
    segments, contents = [], []
    for index in range(len(cuts) + 1):
        part = extract(graph, borders[index], borders[index + 1])
        content = part.SerializeToString(deterministic=True)
        contents.append(content)
        segments.append(
            Segment(
                file=f"s{index}.onnx",
                sha256=hashlib.sha256(content).hexdigest(),
                bytes=len(content),
                macs=sum(node.macs for node in graph.nodes[marks[index] : marks[index + 1]]),
            )
        )
    manifest = Manifest(
        model=ModelFacts(
            name=recipe.name,
            sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
            opset=graph.opset,
            macs=graph.macs,
        ),
        inputs=graph.inputs,
        outputs=graph.outputs,
        segments=tuple(segments),
        cuts=tuple(
            Cut(name=cut.tensor.name, egress=(cut.tensor,), macs_share=round(cut.macs_share, 6))
            for cut in cuts
        ),
        preprocess=recipe.preprocess,
        labels=recipe.labels,
        tools={name: version(name) for name in TOOLS},
    )
    return write_artifact(target, manifest, contents)
