"""The one door to ONNX Runtime: an artifact's segments, loaded once, run from any cut to any."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

from splitserve.artifact import Artifact, Manifest
from splitserve.errors import ArtifactError, RuntimeFailureError
from splitserve.tensors import DTYPES, Array, Tensors, TensorSpec

VERSION = str(ort.__version__)

# What ONNX Runtime calls our dtypes.
TYPES = {name: f"tensor({name})" for name in DTYPES} | {
    "float32": "tensor(float)",
    "float64": "tensor(double)",
}


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """How graphs are run.

    Args:
        threads: threads of one run; 0 means the cores this process may use.
        providers: execution providers in order of preference.
        optimise: let ONNX Runtime rewrite the graph; off only to compare bit for bit.
    """

    threads: int = 0
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    optimise: bool = True


class Graph:
    """One loaded ONNX graph."""

    def __init__(self, content: bytes | Path, options: RuntimeOptions) -> None:
        """Load a graph from bytes, or from a file that keeps its weights beside it.

        Raises:
            RuntimeFailureError: ONNX Runtime refuses it; the message is ONNX Runtime's.
        """
        try:
            self._session = ort.InferenceSession(
                content, _session_options(options), providers=list(options.providers)
            )
        except Exception as error:  # ONNX Runtime's errors share no base but Exception
            raise RuntimeFailureError(f"ONNX Runtime cannot load the graph: {error}") from error
        given, made = self._session.get_inputs(), self._session.get_outputs()
        self.inputs = tuple(value.name for value in given)
        self.outputs = tuple(value.name for value in made)
        self.signature = tuple(tuple(_facts(value) for value in values) for values in (given, made))
        self.providers = tuple(self._session.get_providers())

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Compute every output.

        Raises:
            RuntimeFailureError: inputs missing or of another type, or the run failed.
        """
        try:
            feeds = {name: tensors[name] for name in self.inputs}
            values = self._session.run(None, feeds)
        except KeyError as error:
            raise RuntimeFailureError(f"the graph's input {error} is missing") from error
        except Exception as error:  # ONNX Runtime's errors share no base but Exception
            # Its own words may quote values of the input, so only its kind and the shapes pass.
            given = ", ".join(f"{key} {value.dtype} {value.shape}" for key, value in feeds.items())
            kind = type(error).__name__
            raise RuntimeFailureError(f"ONNX Runtime failed ({kind}) on {given}") from error
        return dict(zip(self.outputs, values, strict=True))


class Chain:
    """The segments of one artifact. A head, a tail and the whole model are slices of it.

    A tensor may cross several positions. A segment takes those tensors of its position that it
    reads, and gives those of the next one that are not there yet; the chain carries the others
    past it, and lets go of what the next position does not list.

    Args:
        graphs: the segments in order.
        crossing: names of the tensors of every position, from the model's input to its output.
        heads: fused heads by the position they end at, used instead of the segments before it.
    """

    def __init__(
        self,
        graphs: Sequence[Graph],
        crossing: Sequence[Sequence[str]],
        heads: Mapping[int, Graph] | None = None,
    ) -> None:
        self._graphs = tuple(graphs)
        self._crossing = tuple(tuple(names) for names in crossing)
        self._heads = dict(heads or {})

    def __len__(self) -> int:
        return len(self._graphs)

    @property
    def providers(self) -> tuple[str, ...]:
        """Execution providers in use, as ONNX Runtime reports them."""
        return self._graphs[0].providers

    def run(self, tensors: Tensors, start: int, stop: int) -> Mapping[str, Array]:
        """Run segments start to stop - 1; with start == stop the tensors come back as they are.

        Args:
            tensors: the egress tensors at position `start`, by name.
            start: first position, 0 for the model's input.
            stop: last position, `len(self)` for the model's output.

        Raises:
            RuntimeFailureError: a tensor is missing or of another type, or a run failed.
        """
        if start == 0 and stop in self._heads:
            return self._pass(self._heads[stop], tensors, stop)
        for position, graph in enumerate(self._graphs[start:stop], start + 1):
            tensors = self._pass(graph, tensors, position)
        return tensors

    def _pass(self, graph: Graph, tensors: Tensors, position: int) -> dict[str, Array]:
        """Run a graph that ends at a position, and carry the tensors that it does not make."""
        there = {**tensors, **graph.run(tensors)}
        try:
            return {name: there[name] for name in self._crossing[position]}
        except KeyError as error:
            raise RuntimeFailureError(f"tensor {error}, which crosses here, is missing") from error


def open_chain(artifact: Artifact, options: RuntimeOptions, fused: Sequence[int] = ()) -> Chain:
    """Verify and load every segment of an artifact.

    Args:
        artifact: the folder.
        options: how to run.
        fused: positions whose heads are also loaded in one piece, where the artifact stores it.

    Raises:
        IntegrityError: a file differs from its hash.
        ArtifactError: a graph takes or gives something else than the manifest says.
        RuntimeFailureError: ONNX Runtime refuses a segment.
    """
    count = len(artifact.manifest.segments)
    segments = [Graph(artifact.read_segment(index), options) for index in range(count)]
    contents = {position: artifact.read_fused_head(position) for position in fused}
    heads = {p: Graph(head, options) for p, head in contents.items() if head}
    for index, graph in enumerate(segments):
        _check(graph, artifact.manifest, index, index + 1)
    for position, graph in heads.items():
        _check(graph, artifact.manifest, 0, position)
    positions = range(count + 1)
    crossing = [[spec.name for spec in artifact.manifest.egress(p)] for p in positions]
    return Chain(segments, crossing, heads)


Facts = tuple[str, str, tuple[int | None, ...]]


def _facts(value: ort.NodeArg) -> Facts:
    """Name, type and shape of an input or output; None for a free dimension."""
    return value.name, value.type, _sizes(value.shape)


def _facts_of(spec: TensorSpec) -> Facts:
    return spec.name, TYPES[spec.dtype], _sizes(spec.shape)


def _sizes(shape: Sequence[object]) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in shape)


def _check(graph: Graph, manifest: Manifest, start: int, stop: int) -> None:
    """Compare what a graph takes and gives with what the manifest says of its positions.

    It takes some of the tensors of the position before it, and gives those of the position behind
    it that did not cross the one before, each in the manifest's order.
    """
    before, behind = manifest.egress(start), manifest.egress(stop)
    carried = {spec.name for spec in before}
    taken, given = graph.signature
    offered = tuple(_facts_of(spec) for spec in before)
    wanted = tuple(_facts_of(spec) for spec in behind if spec.name not in carried)
    if given != wanted or taken != tuple(facts for facts in offered if facts in taken):
        names = manifest.positions
        raise ArtifactError(
            f"the graph from {names[start]} to {names[stop]} does not fit the manifest:"
            f" it has {graph.signature}, the manifest says {(offered, wanted)}"
        )


def write_optimised(content: bytes | Path, target: Path, fuse: bool = True) -> None:
    """Write the graph as ONNX Runtime's hardware-independent fusions leave it.

    Its weights go into a file beside it, for they may be larger than one ONNX file can hold.

    Args:
        content: the graph.
        target: file to write.
        fuse: also merge operations into the runtime's own; without it, constants are computed and
            what is redundant is removed.

    Raises:
        RuntimeFailureError: ONNX Runtime refuses the graph.
    """
    settings = _session_options(RuntimeOptions(threads=1))
    levels = ort.GraphOptimizationLevel
    level = levels.ORT_ENABLE_EXTENDED if fuse else levels.ORT_ENABLE_BASIC
    settings.graph_optimization_level = level
    settings.optimized_model_filepath = str(target)
    settings.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", f"{target.name}.weights"
    )
    settings.log_severity_level = 4
    try:
        ort.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base but Exception
        raise RuntimeFailureError(f"ONNX Runtime cannot load the graph: {error}") from error


def _session_options(options: RuntimeOptions) -> ort.SessionOptions:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads or len(os.sched_getaffinity(0))
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    # Spinning threads burn the core that the next stage needs, and idle processes stay idle.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not options.optimise:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return settings
