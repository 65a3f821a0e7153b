"""Write parts of a graph as graphs of their own, and the artifact that holds them."""

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import onnx
from pydantic import ValidationError

from splitserve.artifact import Artifact, Cut, Manifest, ModelFacts, Segment, write_artifact
from splitserve.errors import GraphError, UsageError
from splitserve.split.cuts import CutCandidate, bits
from splitserve.split.graph import GraphView
from splitserve.split.model_file import model_sha256, serialise
from splitserve.split.recipe import Recipe
from splitserve.tensors import DTYPES, TensorSpec

FUSED_HEAD_SHARE = 0.25  # of the model's bytes; a larger head runs from the shared segments
IR_MIN = 4
TOOLS = ("splitserve", "onnx", "onnxruntime", "numpy")


def extract(
    graph: GraphView, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> onnx.ModelProto:
    """Build the model that computes, from `inputs`, those of `outputs` that are not among them.

    It takes only the inputs that it reads. Initialisers and nodes that depend on them alone are
    copied into every part that reads them. The stock extractor is not used: it refuses tensors
    without value_info and walks the graph recursively.

    Raises:
        GraphError: an output depends on a model input that is not among `inputs`.
        UsageError: every output is an input already, so the part would be empty.
    """
    given = {spec.name for spec in inputs}
    made = [spec for spec in outputs if spec.name not in given]
    if not made:
        names = ", ".join(spec.name for spec in outputs)
        raise UsageError(f"nothing is left to compute between two cuts: {names} cross both")
    needed = {spec.name for spec in made}
    read: set[str] = set()
    picked = []
    for proto, node in zip(reversed(graph.model.graph.node), reversed(graph.nodes), strict=True):
        if needed.intersection(node.outputs):
            picked.append(proto)
            needed.difference_update(node.outputs)
            needed.update(name for name in node.inputs if name not in given)
            read.update(node.inputs)
    weights = [value for value in graph.model.graph.initializer if value.name in needed]
    missing = needed - {value.name for value in weights}
    if missing:
        raise GraphError(f"the part also needs {', '.join(sorted(missing))}")
    part = onnx.helper.make_graph(
        picked[::-1],
        graph.model.graph.name or "part",
        [_value_info(spec) for spec in inputs if spec.name in read],
        [_value_info(spec) for spec in made],
        weights,
    )
    model = onnx.helper.make_model(part, opset_imports=graph.model.opset_import)
    # Before IR 4 every initialiser had to stand among the inputs too; a part lists its own only.
    model.ir_version = max(IR_MIN, graph.model.ir_version)
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
        cuts: where, in the order of the graph; each head holds the one before.
        recipe: name, preprocessing and labels.
        source: the ONNX file, for its hash; weights beside it count.
        target: the folder to write.

    Raises:
        UsageError: the recipe does not fit the model, or two cuts are the same.
    """
    writer = _Writer(graph, cuts)
    segments = tuple(writer.part(f"s{i}.onnx", i, i + 1) for i in range(len(cuts) + 1))
    limit = FUSED_HEAD_SHARE * sum(segment.bytes for segment in segments)
    heads = _fused_heads(writer, len(cuts), limit)
    try:
        manifest = Manifest(
            model=ModelFacts(
                name=recipe.name,
                sha256=model_sha256(source),
                opset=graph.opset,
                macs=graph.macs,
            ),
            inputs=graph.inputs,
            outputs=graph.outputs,
            segments=segments,
            cuts=tuple(
                Cut(
                    name=cut.name,
                    egress=cut.egress,
                    macs_share=round(cut.macs_share, 6),
                    fused_head=head,
                )
                for cut, head in zip(cuts, heads, strict=True)
            ),
            preprocess=recipe.preprocess,
            labels=recipe.labels,
            tools={name: version(name) for name in TOOLS},
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise UsageError(f"{source} with recipe {recipe.name!r}: {first['msg']}") from error
    files = {segment.file: writer.contents[segment.file] for segment in manifest.files}
    return write_artifact(target, manifest, files)


def _fused_heads(writer: "_Writer", count: int, limit: float) -> list[Segment | None]:
    """Heads in one piece up to a size; the first cut's head is segment 0 already.

    Heads only grow along the cuts, so none is written after the first that is too large.
    """
    heads: list[Segment | None] = [None] * count
    for index in range(1, count):
        head = writer.part(f"h{index + 1}.onnx", 0, index + 1)
        if head.bytes > limit:
            break
        heads[index] = head
    return heads


class _Writer:
    """Extracts parts between positions and remembers their bytes by file name."""

    def __init__(self, graph: GraphView, cuts: Sequence[CutCandidate]) -> None:
        self._graph = graph
        self._borders = [graph.inputs, *(cut.egress for cut in cuts), graph.outputs]
        self._heads = [0, *(cut.head for cut in cuts), (1 << len(graph.nodes)) - 1]
        self.contents: dict[str, bytes] = {}

    def part(self, file: str, start: int, stop: int) -> Segment:
        """Extract what lies between two positions."""
        part = extract(self._graph, self._borders[start], self._borders[stop])
        content = serialise(part, f"{file}, the part of the model between two cuts,")
        self.contents[file] = content
        inside = bits(self._heads[stop] & ~self._heads[start])
        return Segment(
            file=file,
            sha256=hashlib.sha256(content).hexdigest(),
            bytes=len(content),
            macs=sum(self._graph.nodes[index].macs for index in inside),
        )
