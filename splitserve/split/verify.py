"""Proof that tail(head(x)) equals model(x)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx

from splitserve.artifact import Artifact
from splitserve.runtime import Chain, Graph, RuntimeOptions, open_chain
from splitserve.split.cuts import CutCandidate
from splitserve.split.extract import extract
from splitserve.split.graph import GraphView
from splitserve.split.model_file import runnable
from splitserve.tensors import Array, Tensors, TensorSpec

TOLERANCE = 1e-5  # fused kernels add in another order than separate ones


@dataclass(frozen=True, slots=True)
class CutError:
    """How far a recomposed model is from the whole one.

    Args:
        cut: name of the cut, or of the whole chain of segments.
        batch: size of the free dimensions.
        is_exact: equal bit for bit with optimisations off.
        relative: largest difference over the largest magnitude, with optimisations on.
    """

    cut: str
    batch: int
    is_exact: bool
    relative: float

    @property
    def is_good(self) -> bool:
        """Exact with optimisations off, within tolerance with them on."""
        return self.is_exact and self.relative <= TOLERANCE


def compare_cuts(
    graph: GraphView, cuts: Sequence[CutCandidate], inputs: Sequence[Tensors]
) -> Iterator[CutError]:
    """Cut the model at each cut alone; compare head and tail with the whole model.

    Args:
        graph: view of the whole model.
        cuts: where to cut.
        inputs: one set of input tensors per batch size.

    Yields:
        One result per cut and batch.
    """
    wanted = _whole(graph, inputs)
    for cut in cuts:
        borders = (graph.inputs, cut.egress, graph.outputs)
        parts = [extract(graph, before, behind) for before, behind in pairwise(borders)]
        got = {mode: _in_turn(parts, borders, mode, inputs) for mode in (False, True)}
        yield from _compare(cut.name, wanted, got, inputs)


def compare_artifact(
    graph: GraphView, artifact: Artifact, inputs: Sequence[Tensors]
) -> Iterator[CutError]:
    """Run every plan of an artifact; compare with the model it was made from.

    The shared segments run in the same order whatever the plan, so one comparison per batch size
    covers them; each fused head is compared with the segments behind it.
    """
    wanted = _whole(graph, inputs)
    names = {len(artifact.manifest.segments): "all segments"}
    for position, cut in enumerate(artifact.manifest.cuts, 1):
        if cut.fused_head:
            names[position] = f"fused head to {cut.name}"
    chains = {
        mode: open_chain(artifact, RuntimeOptions(optimise=mode), fused=list(names))
        for mode in (False, True)
    }
    for position, name in names.items():
        got = {
            mode: [_through(chain, position, tensors) for tensors in inputs]
            for mode, chain in chains.items()
        }
        yield from _compare(name, wanted, got, inputs)


def _through(chain: Chain, position: int, tensors: Tensors) -> dict[str, Array]:
    """Run the head to a position, then the tail."""
    return dict(chain.run(chain.run(tensors, 0, position), position, len(chain)))


Results = Sequence[dict[str, Array]]


def _whole(graph: GraphView, inputs: Sequence[Tensors]) -> dict[bool, Results]:
    ends = (graph.inputs, graph.outputs)
    return {mode: _in_turn([graph.model], ends, mode, inputs) for mode in (False, True)}


def _in_turn(
    models: Sequence[onnx.ModelProto],
    borders: Sequence[Sequence[TensorSpec]],
    optimise: bool,
    inputs: Sequence[Tensors],
) -> Results:
    graphs = []
    for model in models:
        with runnable(model) as source:
            graphs.append(Graph(source, RuntimeOptions(optimise=optimise)))
    chain = Chain(graphs, [[spec.name for spec in border] for border in borders])
    return [dict(chain.run(tensors, 0, len(chain))) for tensors in inputs]


def _compare(
    name: str,
    wanted: Mapping[bool, Results],
    got: Mapping[bool, Results],
    inputs: Sequence[Tensors],
) -> Iterator[CutError]:
    for index, tensors in enumerate(inputs):
        exact = all(
            np.array_equal(value, got[False][index][key], equal_nan=value.dtype.kind == "f")
            for key, value in wanted[False][index].items()
        )
        error = max(
            relative_error(value, got[True][index][key])
            for key, value in wanted[True][index].items()
        )
        batch = next((value.shape[0] for value in tensors.values() if value.ndim), 1)
        yield CutError(name, batch, exact, error)


def relative_error(wanted: Array, got: Array) -> float:
    """Largest absolute difference over the largest finite magnitude of `wanted`.

    Values that are equal, infinities and NaN included, do not differ; NaN where a number is wanted
    gives NaN, which is within no tolerance.
    """
    if wanted.shape != got.shape:
        return float("inf")
    wide, other = wanted.astype(np.float64), got.astype(np.float64)
    differs = (wide != other) & ~(np.isnan(wide) & np.isnan(other))
    scale = float(np.abs(wide[np.isfinite(wide)]).max(initial=0)) or 1.0
    return float(np.abs(wide[differs] - other[differs]).max(initial=0)) / scale
