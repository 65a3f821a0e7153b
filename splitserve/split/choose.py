"""Which cuts an artifact gets: those named, or those worth having."""

from collections.abc import Container, Iterator, Sequence
from itertools import pairwise

from splitserve.errors import UsageError
from splitserve.split.cuts import CutCandidate, find_cuts, mark_fused
from splitserve.split.frontier import find_frontier
from splitserve.split.graph import GraphView
from splitserve.split.lattice import SOURCE, Lattice

ALL = "all"
# A border between segments costs time, so several tensors must save this share of the bytes that
# cross before them.
SAVING = 0.25
MOST_TENSORS = 64  # of one frame, by default


def choose_cuts(graph: GraphView, names: Sequence[str] = ()) -> list[CutCandidate]:
    """Pick the cuts of an artifact by name, or those worth having; each head holds the one before.

    Without names a single-tensor cut is kept when its tensor has fewer bytes than the input and
    than every cut before it, for a later and larger tensor loses in work and in bytes alike; of
    several of one shape the last is kept. A cut of several tensors is kept when it is on the
    frontier and has at most three quarters of these bytes. Fused tensors are passed over, and so
    is what comes before any work.

    Args:
        graph: the whole model.
        names: names of cuts, those of several tensors joined by `+` in any order; `all` alone for
            every single-tensor cut.

    Raises:
        UsageError: a name that is no cut, or two cuts of which neither lies before the other.
    """
    if not names:
        return worthwhile(graph, candidates(graph, find_frontier(graph)))
    if list(names) == [ALL]:
        return mark_fused(graph, find_cuts(graph))
    lattice = Lattice(graph)
    heads = dict.fromkeys(named_head(lattice, name) for name in names)
    cuts = [lattice.candidate(head) for head in sorted(heads, key=int.bit_count)]
    for earlier, later in pairwise(cuts):
        if earlier.head & ~later.head:
            raise UsageError(
                f"the cuts {earlier.name} and {later.name} are not nested: each head runs nodes"
                " that the other leaves to the cloud, so one artifact cannot hold both"
            )
    return mark_fused(graph, cuts)


def candidates(graph: GraphView, frontier: Sequence[CutCandidate]) -> list[CutCandidate]:
    """Join every single-tensor cut and the frontier in order of work, fused ones marked."""
    cuts = {cut.head: cut for cut in (*frontier, *find_cuts(graph))}
    return mark_fused(graph, sorted(cuts.values(), key=lambda cut: cut.head.bit_count()))


def worthwhile(graph: GraphView, cuts: Sequence[CutCandidate]) -> list[CutCandidate]:
    """Keep of cuts in order of work those that `choose_cuts` takes without names."""
    smallest = sum(spec.raw_bytes() for spec in graph.inputs)
    chosen: list[CutCandidate] = []
    for cut in cuts:
        before = chosen[-1].head if chosen else 0
        is_late = bool(cut.macs_share or not graph.macs) and not before & ~cut.head
        if cut.is_fused or not is_late or not _saves(cut, smallest):
            continue
        smallest = cut.raw_bytes()
        if chosen and _has_shape_of(cut, chosen[-1]):
            chosen.pop()  # the same features in fewer bytes: behind the quantiser of a QDQ model
        chosen.append(cut)
    return chosen


def _saves(cut: CutCandidate, smallest: int) -> bool:
    if len(cut.egress) == 1:
        return cut.raw_bytes() < smallest
    return cut.raw_bytes() <= (1 - SAVING) * smallest and len(cut.egress) <= MOST_TENSORS


def _has_shape_of(cut: CutCandidate, other: CutCandidate) -> bool:
    return [spec.shape for spec in cut.egress] == [spec.shape for spec in other.egress]


def named_head(lattice: Lattice, name: str) -> int:
    """Find the head behind which exactly the tensors of a name cross.

    Raises:
        UsageError: there is none.
    """
    edges = {edge.name: edge for edge in lattice.edges}
    missing: list[str] = []
    for names in _spellings(name, edges):
        made = [edges[part].maker for part in names if edges[part].maker != SOURCE]
        head = lattice.closure(made)
        crossing = {edge.name for edge in lattice.egress(head)}
        if crossing == set(names) and lattice.is_cut(head):
            return head
        if head:
            missing = sorted(crossing - set(names))
    reason = f": {', '.join(missing)} would have to cross with it" if missing else ""
    raise UsageError(f"no cut {name!r}{reason}; list them with: splitserve cuts MODEL [--frontier]")


def _spellings(name: str, known: Container[str]) -> Iterator[tuple[str, ...]]:
    """Ways to read a name as tensors joined by `+`, which tensors may hold in their names too."""
    if name in known:
        yield (name,)
    for place, letter in enumerate(name):
        if letter == "+" and name[:place] in known:
            for rest in _spellings(name[place + 1 :], known):
                yield (name[:place], *rest)
