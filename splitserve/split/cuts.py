"""Every single-tensor cut of a graph, by one sweep."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from splitserve.artifact import INPUT, OUTPUT
from splitserve.errors import UsageError
from splitserve.runtime import write_optimised
from splitserve.split.graph import GraphView
from splitserve.tensors import TensorSpec

QUANTISE = "QuantizeLinear"


@dataclass(frozen=True, slots=True)
class CutCandidate:
    """A tensor that alone parts the graph.

    Args:
        tensor: the egress tensor.
        nodes: how many nodes of the graph, in its order, lie before it.
        macs_share: share of the model's multiply-adds before it.
        is_fused: ONNX Runtime fuses it away inside one kernel, so cutting here makes head and
            tail slower than their sum; None where that was not looked at.
    """

    tensor: TensorSpec
    nodes: int
    macs_share: float
    is_fused: bool | None = None


def find_cuts(graph: GraphView) -> list[CutCandidate]:
    """List every tensor that alone crosses some boundary of the graph, in order.

    Such a tensor dominates the output, so its ancestors are a prefix of any topological order and
    one sweep over last uses finds them all. Tensors of unknown shape are left out, and so is one
    called `input` or `output`, for positions have these names. O(V + E).

    Source: dominator argument and check against exhaustive search in the project's research notes.
    """
    last_use = _last_uses(graph)
    total = max(1, graph.macs)
    live = {spec.name for spec in graph.inputs if spec.name in last_use}
    seen = {INPUT, OUTPUT, *(spec.name for spec in (*graph.inputs, *graph.outputs))}
    cuts, done = [], 0
    for index, node in enumerate(graph.nodes):
        done += node.macs
        if not node.is_constant:
            live.update(name for name in node.outputs if name in last_use)
        live.difference_update(name for name in node.inputs if last_use.get(name) == index)
        if len(live) == 1 and not live & seen:
            name = next(iter(live))
            seen.add(name)
            if name in graph.specs:
                cuts.append(CutCandidate(graph.specs[name], index + 1, done / total))
    return cuts


def _last_uses(graph: GraphView) -> dict[str, int]:
    """Index of the last node that reads each tensor; outputs are read after the last node."""
    last_use = {
        name: index
        for index, node in enumerate(graph.nodes)
        if not (node.is_constant or node.is_dead)
        for name in node.inputs
    }
    last_use.update((spec.name, len(graph.nodes)) for spec in graph.outputs)
    return last_use


def mark_fused(graph: GraphView, cuts: Sequence[CutCandidate]) -> list[CutCandidate]:
    """Find out which cuts lie inside what ONNX Runtime runs as one kernel.

    The runtime writes the graph as its hardware-independent fusions leave it; a tensor that is
    gone from there was fused away. A quantiser's output is the border of an integer kernel, also
    where the runtime gives it another name.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        write_optimised(graph.model.SerializeToString(), path)
        optimised = onnx.load(str(path)).graph
    kept = {name for node in optimised.node for name in node.output}
    kept.update(name for node in graph.nodes if node.op == QUANTISE for name in node.outputs)
    return [replace(cut, is_fused=cut.tensor.name not in kept) for cut in cuts]


def choose_cuts(
    graph: GraphView, cuts: Sequence[CutCandidate], names: Sequence[str] = ()
) -> list[CutCandidate]:
    """Pick cuts by tensor name, or those worth having.

    Without names: a cut is kept when its tensor has fewer bytes than the input and than every
    tensor cut before it, for a later and larger tensor loses in work and in bytes alike; of
    several of one shape the last is kept. Fused tensors are passed over, and so is what comes
    before any work.

    Raises:
        UsageError: a name that is no single-tensor cut.
    """
    if not names:
        return _record_lows(graph, cuts)
    known = {cut.tensor.name for cut in cuts}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(
            f"no single-tensor cut at {', '.join(unknown)}; list them with: splitserve cuts MODEL"
        )
    return [cut for cut in cuts if cut.tensor.name in names]


def _record_lows(graph: GraphView, cuts: Sequence[CutCandidate]) -> list[CutCandidate]:
    smallest = sum(spec.raw_bytes() for spec in graph.inputs)
    chosen: list[CutCandidate] = []
    for cut in cuts:
        if (
            cut.tensor.raw_bytes() >= smallest
            or cut.is_fused
            or (graph.macs and not cut.macs_share)
        ):
            continue
        smallest = cut.tensor.raw_bytes()
        if chosen and chosen[-1].tensor.shape == cut.tensor.shape:
            chosen.pop()  # the same features in fewer bytes: behind the quantiser of a QDQ model
        chosen.append(cut)
    return chosen
