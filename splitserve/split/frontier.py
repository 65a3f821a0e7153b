"""Cuts at which several tensors cross: the Pareto frontier, and the cheapest cut for given costs.

Between two neighbouring single-tensor cuts the graph is an independent block: a head that reaches
behind a single-tensor cut holds everything before it. So each block is searched alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from math import lcm
from typing import Any

import numpy as np
import numpy.typing as npt

from splitserve.errors import UsageError
from splitserve.split.cuts import CutCandidate, bits, find_cuts
from splitserve.split.graph import GraphView
from splitserve.split.lattice import Edge, Lattice
from splitserve.split.mincut import Costs, cheapest_head

BLOCK_NODES = 62  # the bits of an integer in which a block's heads are enumerated
BLOCK_HEADS = 2**14  # every block of up to 14 nodes has no more
Numbers = npt.NDArray[Any]
Point = tuple[int, int]  # multiply-adds, bytes


def find_frontier(graph: GraphView) -> list[CutCandidate]:
    """List the cuts that no other position beats, of one tensor or several, in order of work.

    A cut is on the Pareto frontier when no other position, the model's input and output included,
    has at most its multiply-adds on the edge and at most its bytes. Of several with the same of
    both, the one with the most nodes on the edge stands for all: a kernel of the runtime mostly
    ends behind the operations that multiply nothing.

    The frontier is exact in blocks of at most 62 nodes and 16,384 heads, which is every block of
    up to 14 nodes. In larger blocks only the lower convex hull of the block's points is found: the
    cuts that are best for some price of a multiply-add in bytes.

    Source: divide and conquer over the price after Eisner and Severance, Journal of the ACM 23
    (1976), pp. 619-635.
    """
    lattice, cuts = Lattice(graph), find_cuts(graph)
    heads = [cut.head for cut in cuts]
    for low, high in pairwise((0, *heads, lattice.full)):
        heads += [head for head in _inside(lattice, low, high) if lattice.is_cut(head)]
    known = {cut.head: cut for cut in cuts}
    points = {head: _point(lattice, head) for head in {0, lattice.full, *heads}}
    return [
        known.get(head) or lattice.candidate(head)
        for head in _undominated(points, lattice)
        if head not in (0, lattice.full)
    ]


def best_cut(
    graph: GraphView,
    edge_costs: Sequence[float],
    cloud_costs: Sequence[float],
    byte_cost: float,
) -> CutCandidate:
    """Find the cheapest of all heads: what it costs on the edge, the rest in the cloud, and bytes.

    The answer is exact for the numbers given, integers or floats: every float is a fraction, so
    the search runs in whole numbers of any size. Of several the one with the most nodes on the
    edge is returned. It may be one of the ends: no node on the edge, when the model's inputs
    cross, or every node, when its outputs are charged as if they crossed.

    Args:
        graph: the whole model.
        edge_costs: of each node of the graph, on the edge.
        cloud_costs: of each node, in the cloud.
        byte_cost: of each byte that crosses, not negative.

    Raises:
        UsageError: not one cost per node, or a cost that is not finite, or a negative byte cost.
    """
    if not len(edge_costs) == len(cloud_costs) == len(graph.nodes):
        raise UsageError(
            f"{len(edge_costs)} and {len(cloud_costs)} costs for {len(graph.nodes)} nodes"
        )
    try:
        price = Fraction(byte_cost)
        pairs = zip(edge_costs, cloud_costs, strict=True)
        gains = [Fraction(edge) - Fraction(cloud) for edge, cloud in pairs]
    except (OverflowError, ValueError) as error:
        raise UsageError("a cost is not a finite number") from error
    if price < 0:
        raise UsageError(f"a byte cannot cost {byte_cost}")
    scale = lcm(price.denominator, *(gain.denominator for gain in gains))
    whole = {index: int(gain * scale) for index, gain in enumerate(gains)}
    lattice = Lattice(graph)
    costs = Costs(whole, int(price * scale))
    return lattice.candidate(cheapest_head(lattice, costs, 0, lattice.full))


def _point(lattice: Lattice, head: int) -> Point:
    return lattice.macs(head), lattice.raw_bytes(head)


def _undominated(points: Mapping[int, Point], lattice: Lattice) -> list[int]:
    """Heads that no other beats, in order of work; among equals an end, then the largest head."""
    order = sorted(
        points,
        key=lambda head: (*points[head], head not in (0, lattice.full), -head.bit_count(), head),
    )
    kept: list[int] = []
    for head in order:
        if not kept or points[head][1] < points[kept[-1]][1]:
            kept.append(head)
    return kept


def _inside(lattice: Lattice, low: int, high: int) -> Iterator[int]:
    """Heads between two that may be on the frontier."""
    free = tuple(bits(high & ~low))
    if len(free) < 2:
        return iter(())
    heads = _enumerate(lattice, free)
    if heads is None:
        return _hull(lattice, low, high)
    return _best_of(lattice, free, low, heads)


def _enumerate(lattice: Lattice, free: Sequence[int]) -> Numbers | None:
    """List every head of a block, bit i standing for its i-th node; None if there are too many."""
    if len(free) > BLOCK_NODES:
        return None
    places = {index: place for place, index in enumerate(free)}
    heads = np.zeros(1, np.int64)
    for index, place in places.items():
        needed = sum(1 << places[other] for other in lattice.needs[index] if other in places)
        grown = heads[heads & needed == needed] | (1 << place)
        heads = np.concatenate([heads, grown])
        if len(heads) > BLOCK_HEADS:
            return None
    return heads


def _best_of(lattice: Lattice, free: Sequence[int], low: int, heads: Numbers) -> Iterator[int]:
    """Pareto frontier of a block's heads, its two ends left out, as heads of the graph."""
    places = {index: place for place, index in enumerate(free)}
    edges = lattice.touching(sum(1 << index for index in free))
    weights = [lattice.macs(1 << index) for index in free]
    total = sum(weights) + sum(edge.raw_bytes for edge in edges)
    kind = np.int64 if total < 2**62 else object
    macs, crossing = np.zeros(len(heads), kind), np.zeros(len(heads), kind)
    allowed = (heads != 0) & (heads != (1 << len(free)) - 1)
    for place, weight in enumerate(weights):
        macs += (heads >> place & 1).astype(kind) * weight
    for edge in edges:
        crosses = _crosses(edge, places, low, heads)
        crossing += crosses.astype(kind) * edge.raw_bytes
        if edge.spec is None:
            allowed &= ~crosses
    order = np.lexsort((-np.bitwise_count(heads).astype(np.int64), crossing, macs))
    order = order[allowed[order]]
    least: int | None = None
    for row in order.tolist():
        if least is not None and crossing[row] >= least:
            continue
        head = low | sum(1 << free[place] for place in bits(int(heads[row])))
        if lattice.is_cut(head):
            least = crossing[row]
            yield head


def _crosses(edge: Edge, places: Mapping[int, int], low: int, heads: Numbers) -> Numbers:
    """For each of a block's heads, together with `low`, whether a tensor crosses there."""
    others = edge.readers & ~low
    readers = sum(1 << place for index, place in places.items() if others >> index & 1)
    is_read_beyond = others.bit_count() > readers.bit_count()
    everywhere = heads >= 0
    place = places.get(edge.maker)  # what is made outside the block is made before it
    is_made = everywhere if place is None else heads >> place & 1 == 1
    return is_made & (everywhere if is_read_beyond else readers & ~heads != 0)


def _hull(lattice: Lattice, low: int, high: int) -> Iterator[int]:
    """Heads on the lower convex hull of the points between two heads.

    The best heads for falling prices of a multiply-add grow, so each price is tried only between
    the best heads for its neighbours.
    """
    macs = {index: lattice.macs(1 << index) for index in bits(high & ~low)}
    most_macs = sum(macs.values())
    edges = lattice.touching(high & ~low)
    most_bytes = sum(edge.raw_bytes for edge in edges)

    def best(mac_cost: int, byte_cost: int, low: int, high: int) -> int:
        costs = Costs({index: cost * mac_cost for index, cost in macs.items()}, byte_cost)
        return cheapest_head(lattice, costs, low, high)

    # Least work first, then least bytes: a price that no sum of the other can reach.
    low = best(most_bytes + 1, 1, low, high)
    high = best(1, most_macs + 1, low, high)
    yield from (low, high)
    left = [(low, high)]
    while left:
        low, high = left.pop()
        (few_macs, many_bytes), (many_macs, few_bytes) = _point(lattice, low), _point(lattice, high)
        mac_cost, byte_cost = many_bytes - few_bytes, many_macs - few_macs
        if mac_cost <= 0 or byte_cost <= 0:
            continue
        middle = best(mac_cost, byte_cost, low, high)
        work, crossing = _point(lattice, middle)
        line = mac_cost * few_macs + byte_cost * many_bytes
        if mac_cost * work + byte_cost * crossing < line:
            yield middle
            left += [(low, middle), (middle, high)]
