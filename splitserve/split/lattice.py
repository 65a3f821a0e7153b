"""The graph as sets of nodes: which of them a head may hold, and what then crosses.

A head is a downward-closed set: with a node it holds every node that this one depends on. Sets are
the bits of an integer, bit i standing for node i, so that a graph of a thousand nodes costs 125
bytes a set. Nodes that depend on weights alone are copied to both sides, and nodes that no output
depends on are in neither, so both are in no set.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from splitserve.artifact import INPUT, OUTPUT
from splitserve.split.cuts import CutCandidate, bits
from splitserve.split.graph import GraphView
from splitserve.tensors import TensorSpec

SOURCE = -1


@dataclass(frozen=True, slots=True)
class Edge:
    """A tensor that crosses when its maker is on the edge and one of its readers is not.

    Args:
        name: name in the graph.
        spec: dtype and shape; None where they are unknown, and then it may not cross.
        maker: index of the node that makes it; SOURCE for a model input.
        readers: bits of the nodes that read it; the bit behind the last node is the caller, who
            reads the model's outputs.
    """

    name: str
    spec: TensorSpec | None
    maker: int
    readers: int

    @property
    def raw_bytes(self) -> int:
        """Bytes for batch 1; 0 where the shape is unknown."""
        return self.spec.raw_bytes() if self.spec else 0

    def crosses(self, head: int) -> bool:
        """Whether it crosses when the edge runs `head`."""
        is_made = self.maker == SOURCE or head >> self.maker & 1
        return bool(is_made and self.readers & ~head)


class Lattice:
    """All heads of one graph.

    Args:
        graph: the whole model.
    """

    def __init__(self, graph: GraphView) -> None:
        self._graph = graph
        self.count = len(graph.nodes)
        active = [
            (index, node)
            for index, node in enumerate(graph.nodes)
            if not (node.is_constant or node.is_dead)
        ]
        self.full = sum(1 << index for index, _ in active)
        readers = {spec.name: 1 << self.count for spec in graph.outputs}
        for index, node in active:
            for name in node.inputs:
                readers[name] = readers.get(name, 0) | 1 << index
        made = [(spec.name, SOURCE) for spec in graph.inputs]
        made += [(name, index) for index, node in active for name in node.outputs]
        self.edges = tuple(
            Edge(name, graph.specs.get(name), maker, readers[name])
            for name, maker in made
            if name in readers
        )
        self._touching: dict[int, list[int]] = {index: [] for index, _ in active}
        for place, edge in enumerate(self.edges):
            ends = edge.readers & self.full | (0 if edge.maker == SOURCE else 1 << edge.maker)
            for index in bits(ends):
                self._touching[index].append(place)
        makers = {edge.name: edge.maker for edge in self.edges if edge.maker != SOURCE}
        self.needs = {
            index: tuple({makers[name] for name in node.inputs if name in makers})
            for index, node in active
        }

    def egress(self, head: int) -> tuple[Edge, ...]:
        """What crosses, in the order in which the graph makes it; model inputs come first."""
        return tuple(edge for edge in self.edges if edge.crosses(head))

    def touching(self, nodes: int) -> list[Edge]:
        """Tensors that one of these nodes makes or reads, in the order of `edges`."""
        places = {place for index in bits(nodes) for place in self._touching[index]}
        return [self.edges[place] for place in sorted(places)]

    def raw_bytes(self, head: int) -> int:
        """Bytes that cross for batch 1, tensors of unknown shape left out."""
        return sum(edge.raw_bytes for edge in self.egress(head))

    def closure(self, nodes: Iterable[int]) -> int:
        """Return the smallest head that holds these nodes."""
        head, left = 0, list(nodes)
        while left:
            index = left.pop()
            if not head >> index & 1:
                head |= 1 << index
                left.extend(self.needs[index])
        return head

    def macs(self, head: int) -> int:
        """Multiply-adds of a head for batch 1."""
        return sum(self._graph.nodes[index].macs for index in bits(head))

    def is_cut(self, head: int) -> bool:
        """Whether an artifact may be cut behind this head.

        There must be work on both sides, the shapes of what crosses must be known, and a single
        tensor may not be called `input` or `output`, for positions have these names.
        """
        crossing = self.egress(head)
        return (
            head not in (0, self.full)
            and all(edge.spec for edge in crossing)
            and (len(crossing) > 1 or crossing[0].name not in (INPUT, OUTPUT))
        )

    def candidate(self, head: int) -> CutCandidate:
        """Describe the cut behind a head."""
        specs = tuple(edge.spec for edge in self.egress(head) if edge.spec)
        return CutCandidate(specs, head, self.macs(head) / max(1, self.macs(self.full)))
