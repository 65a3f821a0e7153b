"""The cheapest head between two heads, exactly: a minimum cut in integers.

Costs are whole numbers of any size. SciPy's maximum flow computes in 32 bits and wraps silently
beyond them, so the flow is built up from the leading binary digits of the capacities downwards:
each round appends some digits and augments the flow in what they add, which is at most one digit
group per arc and fits. No digit is dropped.

Source: research notes of the project, section 1.4 (a tensor is paid once, whoever reads it);
capacity scaling after Gabow, Journal of Computer and System Sciences 31 (1985), pp. 148-168.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from splitserve.split.cuts import bits
from splitserve.split.lattice import Edge, Lattice

# The flow network's two ends: what is on the source's side of the minimum cut runs on the edge.
EDGE, CLOUD = 0, 1
ROUND_BITS = 29  # so that an arc's capacity and its opposite's fit into 31 together
Numbers = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Costs:
    """What a head costs, in whole numbers.

    Args:
        gain: by node, its cost on the edge less its cost in the cloud.
        byte: of one byte that crosses.
    """

    gain: Mapping[int, int]
    byte: int


def cheapest_head(lattice: Lattice, costs: Costs, low: int, high: int) -> int:
    """Find the cheapest head that holds `low` and lies in `high`.

    Of several that cost the same the one that holds all others is returned: a kernel mostly ends
    behind the operations that cost nothing.

    Args:
        lattice: heads of the graph.
        costs: what they cost.
        low: a head; tensors that it leaves to nodes outside `high` have known shapes.
        high: a head that holds `low`.
    """
    free = list(bits(high & ~low))
    if not free:
        return low
    network = _Network(len(free))
    places = {index: place + 2 for place, index in enumerate(free)}
    for index, place in places.items():
        gain = costs.gain[index]
        network.arc(*((place, CLOUD) if gain > 0 else (EDGE, place)), abs(gain))
        for needed in lattice.needs[index]:
            if needed in places:
                network.bind(place, places[needed])
    for edge in lattice.touching(high & ~low):
        _add_tensor(network, edge, costs.byte, places, high)
    on_cloud = network.sink_side()
    return low | sum(1 << index for index, place in places.items() if place not in on_cloud)


def _add_tensor(
    network: "_Network", edge: Edge, byte: int, places: Mapping[int, int], high: int
) -> None:
    """Add what a tensor costs, once, when its maker is on the edge and a reader is not."""
    maker = places.get(edge.maker, EDGE)  # what no free node makes is made before all of them
    readers = [places[index] for index in bits(edge.readers & high) if index in places]
    if edge.readers & ~high:  # crosses whenever it is made
        readers = [CLOUD]
    if maker == EDGE and readers == [CLOUD]:
        return  # crosses for all heads in question
    end = readers[0]
    if len(readers) > 1:
        end = network.add()
        for reader in readers:
            network.bind(end, reader)
    if edge.spec is None:
        network.bind(maker, end)
    else:
        network.arc(maker, end, byte * edge.raw_bytes)


class _Network:
    """Arcs between places; 0 is the edge, 1 the cloud, then the nodes, then several-reader tensors.

    Args:
        nodes: how many nodes.
    """

    def __init__(self, nodes: int) -> None:
        self._size = 2 + nodes
        self._arcs: dict[tuple[int, int], int] = {}
        self._bound: set[tuple[int, int]] = set()

    def add(self) -> int:
        """Make another place."""
        self._size += 1
        return self._size - 1

    def arc(self, start: int, end: int, capacity: int) -> None:
        """Charge `capacity` when `start` is on the edge's side and `end` is not."""
        if capacity and start != end:
            self._arcs[start, end] = self._arcs.get((start, end), 0) + capacity

    def bind(self, start: int, end: int) -> None:
        """Forbid that `start` is on the edge's side and `end` is not."""
        if start != end:
            self._bound.add((start, end))

    def sink_side(self) -> set[int]:
        """Places from which the cloud can be reached beside a maximum flow."""
        rows, columns, capacities = self._symmetric()
        graph = _Residual(self._size, rows, columns, capacities)
        graph.fill()
        return graph.reaching_cloud()

    def _symmetric(self) -> tuple[Numbers, Numbers, Numbers]:
        """Arcs and their opposites in the order of a CSR matrix, with capacities."""
        unbounded = sum(self._arcs.values()) + 1
        arcs = {**self._arcs, **dict.fromkeys(self._bound, unbounded)}
        pairs = sorted({*arcs, *((end, start) for start, end in arcs)})
        rows, columns = np.array(pairs, np.int32).reshape(-1, 2).T
        kind = np.int64 if unbounded < 2**60 else object
        return rows, columns, np.array([arcs.get(pair, 0) for pair in pairs], kind)


class _Residual:
    """A network with a flow in it, both as long as the CSR matrix of its arcs."""

    def __init__(self, size: int, rows: Numbers, columns: Numbers, capacities: Numbers) -> None:
        self._size, self._columns, self._capacities = size, columns, capacities
        self._starts = np.searchsorted(rows, np.arange(size + 1)).astype(np.int32)
        self._opposite = np.lexsort((rows, columns))
        self._flow = np.zeros_like(capacities)

    def fill(self) -> None:
        """Make the flow maximal."""
        # A round's new digits add less than one unit of the group to each arc of a minimum cut.
        step = ROUND_BITS - len(self._columns).bit_length()
        total = int(self._capacities.max(initial=0))
        shift = max(0, total.bit_length() - ROUND_BITS + 1)
        while True:
            self._augment(shift)
            if not shift:
                return
            step_now = min(step, shift)
            shift -= step_now
            self._flow <<= step_now

    def _augment(self, shift: int) -> None:
        left = (self._capacities >> shift) - self._flow
        matrix = self._matrix(np.minimum(left, 1 << ROUND_BITS).astype(np.int32))
        self._flow += maximum_flow(matrix, EDGE, CLOUD).flow.data

    def reaching_cloud(self) -> set[int]:
        """Places with a way to the cloud along arcs that the flow leaves open."""
        is_open = (self._capacities > self._flow)[self._opposite].astype(np.int32)
        matrix = self._matrix(is_open)
        matrix.eliminate_zeros()
        order = breadth_first_order(matrix, CLOUD, return_predecessors=False)
        return set(order.tolist())

    def _matrix(self, values: Numbers) -> "csr_array[Any, tuple[int, int]]":
        shape = (self._size, self._size)
        return csr_array((values, self._columns, self._starts), shape=shape)
