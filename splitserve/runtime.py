"""The one door to ONNX Runtime: an artifact's segments, loaded once, run from any cut to any."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

from splitserve.artifact import Artifact, Manifest
from splitserve.errors import ArtifactError, RuntimeFailureError
from splitserve.tensors import DTYPES, Array, Tensors

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

    def __init__(self, content: bytes, options: RuntimeOptions) -> None:
        """Load a graph from bytes.

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

    Args:
        graphs: the segments in order.
        heads: fused heads by the position they end at, used instead of the segments before it.
    """

    def __init__(self, graphs: Sequence[Graph], heads: Mapping[int, Graph] | None = None) -> None:
        self._graphs = tuple(graphs)
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
        """
        if start == 0 and stop in self._heads:
            return self._heads[stop].run(tensors)
        for graph in self._graphs[start:stop]:
            tensors = graph.run(tensors)
        return tensors


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
    return Chain(segments, heads)


Facts = tuple[str, str, tuple[int | None, ...]]


def _facts(value: ort.NodeArg) -> Facts:
    """Name, type and shape of an input or output; None for a free dimension."""
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    return value.name, value.type, shape


def _check(graph: Graph, manifest: Manifest, start: int, stop: int) -> None:
    """Compare what a graph takes and gives with what the manifest says of its positions."""
    wanted = tuple(
        tuple(
            (
                spec.name,
                TYPES[spec.dtype],
                tuple(size if isinstance(size, int) else None for size in spec.shape),
            )
            for spec in manifest.egress(position)
        )
        for position in (start, stop)
    )
    if graph.signature != wanted:
        names = manifest.positions
        raise ArtifactError(
            f"the graph from {names[start]} to {names[stop]} does not fit the manifest:"
            f" it has {graph.signature}, the manifest says {wanted}"
        )


def write_optimised(content: bytes, target: Path) -> None:
    """Write the graph as ONNX Runtime's hardware-independent fusions leave it.

    Raises:
        RuntimeFailureError: ONNX Runtime refuses the graph.
    """
    settings = _session_options(RuntimeOptions(threads=1))
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    settings.optimized_model_filepath = str(target)
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
