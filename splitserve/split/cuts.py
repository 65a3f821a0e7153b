"""What a cut is, and every single-tensor cut of a graph, by one sweep."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from splitserve.artifact import INPUT, OUTPUT
from splitserve.runtime import write_optimised
from splitserve.split.graph import GraphView
from splitserve.split.model_file import runnable
from splitserve.tensors import TensorSpec

QUANTISE = "QuantizeLinear"


@dataclass(frozen=True, slots=True)
class CutCandidate:
    """A place where head and tail may part.

    Args:
        egress: the tensors that cross, in the order in which the graph makes them, model inputs
            first.
        head: the nodes that run on the edge, as bits: bit i stands for node i of the graph. Nodes
            that depend on weights alone, and nodes that no output depends on, are left out.
        macs_share: share of the model's multiply-adds that the head does.
        is_fused: ONNX Runtime fuses one of the tensors away inside one kernel, so cutting here
            makes head and tail slower than their sum; None where that was not looked at.
    """

    egress: tuple[TensorSpec, ...]
    head: int
    macs_share: float
    is_fused: bool | None = None

    @property
    def name(self) -> str:
        """Names of the egress tensors, joined by `+`."""
        return "+".join(spec.name for spec in self.egress)

    @property
    def tensor(self) -> TensorSpec:
        """The egress tensor of a single-tensor cut.

        Raises:
            ValueError: several tensors cross here.
        """
        (spec,) = self.egress
        return spec

    @property
    def nodes(self) -> frozenset[int]:
        """Indices of the nodes that run on the edge."""
        return frozenset(bits(self.head))

    def raw_bytes(self) -> int:
        """Bytes that cross for batch 1, every tensor once, as they lie in memory."""
        return sum(spec.raw_bytes() for spec in self.egress)


def bits(mask: int) -> Iterator[int]:
    """List the places of the bits that are set, from the lowest up."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def find_cuts(graph: GraphView) -> list[CutCandidate]:
    """List every tensor that alone crosses some boundary of the graph, in order.

    Such a tensor dominates the output, so its ancestors are a prefix of any topological order and
    one sweep over last uses finds them all. Tensors of unknown shape are left out, model outputs
    too, and so is one called `input` or `output`, for positions have these names. O(V + E).

    Source: dominator argument and check against exhaustive search in the project's research notes.
    """
    last_use = _last_uses(graph)
    total = max(1, graph.macs)
    live = {spec.name for spec in graph.inputs if spec.name in last_use}
    seen = {INPUT, OUTPUT, *(spec.name for spec in (*graph.inputs, *graph.outputs))}
    cuts, done, head = [], 0, 0
    for index, node in enumerate(graph.nodes):
        done += node.macs
        if not node.is_constant:
            live.update(name for name in node.outputs if name in last_use)
        if not (node.is_constant or node.is_dead):
            head |= 1 << index
        live.difference_update(name for name in node.inputs if last_use.get(name) == index)
        if len(live) == 1 and not live & seen:
            name = next(iter(live))
            seen.add(name)
            if name in graph.specs:
                cuts.append(CutCandidate((graph.specs[name],), head, done / total))
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
    gone from there was fused away, and a cut is marked when any of its tensors was. A quantiser's
    output is the border of an integer kernel, also where the runtime gives it another name.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        with runnable(graph.model) as source:
            write_optimised(source, path)
        optimised = onnx.load(str(path), load_external_data=False).graph
    kept = {name for node in optimised.node for name in node.output}
    kept.update(spec.name for spec in graph.inputs)
    kept.update(name for node in graph.nodes if node.op == QUANTISE for name in node.outputs)
    return [
        replace(cut, is_fused=any(spec.name not in kept for spec in cut.egress)) for cut in cuts
    ]
