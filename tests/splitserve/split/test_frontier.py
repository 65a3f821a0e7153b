"""The frontier and the cheapest cut against exhaustive search; cuts of several tensors run."""

import random
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import (
    floats,
    fork_net,
    model_of,
    random_dag,
    read_by,
    relu,
    weight,
    weighted,
    write_model,
)
from onnx import helper

from splitserve.artifact import OUTPUT
from splitserve.errors import UsageError
from splitserve.runtime import RuntimeOptions, open_chain
from splitserve.split import (
    CutCandidate,
    Recipe,
    best_cut,
    compare_cuts,
    find_cuts,
    find_frontier,
    mark_fused,
    split_model,
)
from splitserve.split import frontier as frontier_module
from splitserve.split.graph import GraphView, view
from splitserve.split.lattice import Lattice
from splitserve.split.verify import compare_artifact
from splitserve.tensors import Tensors

MOST_NODES = 15  # one of them always a Constant, which is in no head
Head = frozenset[int]
Point = tuple[int, int]


def random_graph(seed: int) -> GraphView:
    """A graph of up to 14 nodes that count, half of them wide with many outputs."""
    for most_nodes in (64, 18, MOST_NODES):
        model = random_dag(seed, most_nodes, 0.8 if seed % 4 < 2 else 0.1)
        graph = view(with_all_results(model) if seed % 4 > 1 else model)
        if len(active(graph)) < MOST_NODES:
            break
    return weighted(graph, seed)


def with_all_results(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turn every tensor that nothing reads into an output."""
    read = {name for node in model.graph.node for name in read_by(node)}
    read |= {value.name for value in model.graph.output}
    made = [name for node in model.graph.node for name in node.output]
    model.graph.output.extend(floats(name, [2]) for name in made if name not in read)
    return model


def all_heads(graph: GraphView) -> list[Head]:
    """Every downward-closed set of nodes, by the definition."""
    makers = {name: index for index in active(graph) for name in graph.nodes[index].outputs}
    heads = [frozenset[int]()]
    for index in active(graph):
        needed = {makers[name] for name in graph.nodes[index].inputs if name in makers}
        heads += [head | {index} for head in heads if needed <= head]
    return heads


def active(graph: GraphView) -> list[int]:
    nodes = enumerate(graph.nodes)
    return [index for index, node in nodes if not (node.is_constant or node.is_dead)]


def crossing(graph: GraphView, head: Head) -> list[str]:
    """What is there and still needed, in the order in which it is made, by the definition."""
    there = [spec.name for spec in graph.inputs]
    there += [name for index in sorted(head) for name in graph.nodes[index].outputs]
    needed = {spec.name for spec in graph.outputs}
    for index in set(active(graph)) - head:
        needed.update(graph.nodes[index].inputs)
    return [name for name in there if name in needed]


def points(graph: GraphView) -> dict[Head, Point]:
    """Multiply-adds and bytes of every head behind which only tensors of known shape cross."""
    found = {}
    for head in all_heads(graph):
        names = crossing(graph, head)
        if all(name in graph.specs for name in names):
            macs = sum(graph.nodes[index].macs for index in head)
            found[head] = (macs, sum(graph.specs[name].raw_bytes() for name in names))
    return found


def undominated(values: set[Point]) -> list[Point]:
    """Points that no other one equals or beats in both."""
    kept: list[Point] = []
    for macs, size in sorted(values):
        if not kept or size < kept[-1][1]:
            kept.append((macs, size))
    return kept


def corners(frontier: list[Point]) -> set[Point]:
    """Points of a frontier that alone are best for some price."""
    hull: list[Point] = []
    for x, y in frontier:
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if (x1 - x0) * (y - y0) > (x - x0) * (y1 - y0):
                break
            hull.pop()
        hull.append((x, y))
    return set(hull)


def found_points(graph: GraphView, cuts: list[CutCandidate]) -> list[Point]:
    """Points of cuts, after comparing what they say of themselves with the definition."""
    total = sum(node.macs for node in graph.nodes)
    for cut in cuts:
        assert [spec.name for spec in cut.egress] == crossing(graph, cut.nodes)
        assert cut.name == "+".join(crossing(graph, cut.nodes))
        assert cut.macs_share == sum(graph.nodes[i].macs for i in cut.nodes) / max(1, total)
    return [(sum(graph.nodes[i].macs for i in cut.nodes), cut.raw_bytes()) for cut in cuts]


def check_frontier(graph: GraphView, known: dict[Head, Point], monkey: pytest.MonkeyPatch) -> None:
    ends = {known[frozenset()], known[frozenset(active(graph))]}
    exact = undominated(set(known.values()))
    cuts = find_frontier(graph)
    assert found_points(graph, cuts) == [point for point in exact if point not in ends]
    for cut in cuts:  # of equals the largest stands for all
        point = known[cut.nodes]
        assert len(cut.nodes) == max(len(head) for head, other in known.items() if other == point)
    with monkey.context() as patch:  # as if every block were too large to enumerate
        patch.setattr(frontier_module, "BLOCK_HEADS", 0)
        hull = found_points(graph, find_frontier(graph))
    assert set(hull) <= set(exact) - ends
    assert corners(exact) - ends <= set(hull)


def check_optimum(graph: GraphView, known: dict[Head, Point], rng: random.Random) -> None:
    """Compare the minimum cut with all heads, for prices of bytes and for costs of each node."""
    rate = rng.choice((0, rng.randint(0, 20), rng.randint(0, 10**6), 10**18))
    price = rng.choice((0, rng.randint(0, 20), rng.randint(0, 10**6), 10**18))
    best = best_cut(
        graph, [rate * node.macs for node in graph.nodes], [0] * len(graph.nodes), price
    )
    costs = {head: rate * macs + price * size for head, (macs, size) in known.items()}
    assert costs[best.nodes] == min(costs.values())
    assert best.nodes == frozenset().union(*(h for h in costs if costs[h] == costs[best.nodes]))
    edge = [rng.random() for _ in graph.nodes]
    cloud = [rng.random() / 2 for _ in graph.nodes]
    second = rng.random() * 10 ** -rng.randint(3, 9)
    best = best_cut(graph, edge, cloud, second)
    gains = [Fraction(e) - Fraction(c) for e, c in zip(edge, cloud, strict=True)]
    exact = {
        head: sum((gains[i] for i in head), Fraction(second) * size)
        for head, (_, size) in known.items()
    }
    assert exact[best.nodes] == min(exact.values())


@pytest.mark.parametrize("start", range(0, 1000, 50))
def test_frontier_and_optimum_of_random_graphs_equal_exhaustive_search(
    start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(start, start + 50):
        graph = random_graph(seed)
        assert len(active(graph)) < MOST_NODES
        known = points(graph)
        check_frontier(graph, known, monkeypatch)
        rng = random.Random(seed)
        for _ in range(3):
            check_optimum(graph, known, rng)


def test_random_graphs_are_worth_testing_on() -> None:
    graphs = [random_graph(seed) for seed in range(200)]
    cuts = [find_frontier(graph) for graph in graphs]
    assert sum(any(len(cut.egress) > 1 for cut in found) for found in cuts) > 60
    assert sum(len(found) > 2 for found in cuts) > 20
    assert sum(len(all_heads(graph)) > 50 for graph in graphs) > 40
    assert sum(len(points(graph)) < len(all_heads(graph)) for graph in graphs) > 30
    fronts = [undominated(set(points(graph).values())) for graph in graphs]
    assert sum(len(corners(front)) < len(front) for front in fronts) > 30
    inputs = [{spec.name for spec in graph.inputs} for graph in graphs]
    crossed = [{spec.name for cut in found for spec in cut.egress} for found in cuts]
    assert sum(bool(a & b) for a, b in zip(inputs, crossed, strict=True)) > 20


def random_inputs(graph: GraphView, seed: int) -> Tensors:
    generator = np.random.default_rng(seed)
    return {s.name: generator.standard_normal(2).astype(np.float32) for s in graph.inputs}


def nested(graph: GraphView, seed: int) -> list[CutCandidate]:
    """A random chain of up to four cuts, each head holding the one before."""
    lattice, rng = Lattice(graph), random.Random(seed)
    steps = [lattice.closure(rng.sample(active(graph), 1)) for _ in range(4)]
    heads = [0]
    for step in steps:
        heads.append(heads[-1] | step)
    return [lattice.candidate(head) for head in dict.fromkeys(heads) if lattice.is_cut(head)]


@pytest.mark.parametrize("seed", range(0, 1000, 40))
def test_cuts_of_several_tensors_recompose_bit_for_bit(seed: int) -> None:
    graph = view(random_dag(seed))
    cuts = nested(graph, seed)
    errors = list(compare_cuts(graph, cuts, [random_inputs(graph, seed)]))
    assert [error.cut for error in errors] == [cut.name for cut in cuts]
    assert all(error.is_good for error in errors)


@pytest.mark.parametrize("seed", range(20, 1000, 40))
def test_artifact_with_cuts_of_several_tensors_runs_from_any_position(
    seed: int, tmp_path: Path
) -> None:
    path = write_model(random_dag(seed), tmp_path / "dag.onnx")
    graph = view(onnx.load(path))
    artifact = split_model(graph, nested(graph, seed), Recipe(name="dag"), path, tmp_path / "a")
    inputs = random_inputs(graph, seed)
    assert all(error.is_good for error in compare_artifact(graph, artifact, [inputs]))
    chain = open_chain(artifact, RuntimeOptions(threads=1, optimise=False))
    whole = chain.run(inputs, 0, len(chain))
    for start in range(len(chain) + 1):
        there = chain.run(inputs, 0, start)
        assert list(there) == [spec.name for spec in artifact.manifest.egress(start)]
        answer = chain.run(there, start, len(chain))
        assert all(np.array_equal(answer[name], value) for name, value in whole.items())
    assert sum(s.macs for s in artifact.manifest.segments) == artifact.manifest.model.macs


def test_random_chains_of_cuts_are_worth_testing_on() -> None:
    chains = [nested(view(random_dag(seed)), seed) for seed in range(0, 1000, 20)]
    assert sum(any(len(cut.egress) > 1 for cut in cuts) for cuts in chains) > 30
    carried = [
        {spec.name for spec in first.egress} & {spec.name for spec in second.egress}
        for cuts in chains
        for first, second in pairwise(cuts)
    ]
    assert sum(bool(names) for names in carried) > 30


def test_frontier_holds_two_narrow_branches_together() -> None:
    names = [cut.name for cut in find_frontier(view(fork_net()))]
    assert names == ["stem", "a+b", "pool"]


def test_a_cut_is_marked_when_any_of_its_tensors_is_fused_away() -> None:
    graph = view(fork_net(reads_image_late=True))
    lattice = Lattice(graph)
    makers = {name: index for index in active(graph) for name in graph.nodes[index].outputs}
    heads = [
        lattice.closure([makers[name] for name in names]) for names in (["a", "b"], ["a", "b.conv"])
    ]
    marked = mark_fused(graph, [lattice.candidate(head) for head in heads])
    assert {cut.name: cut.is_fused for cut in marked} == {
        "image+a+b": False, "image+a+b.conv": True,
    }  # fmt: skip


def test_an_output_made_early_may_be_what_crosses() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Concat", ["a", "a"], ["y"], axis=0),
    ]
    graph = view(model_of(nodes, [floats("x", [4])], [floats("a", [4]), floats("y", [8])]))
    assert find_cuts(graph) == []
    first = Lattice(graph).candidate(1)
    assert first.name == "a"
    inputs = {"x": np.array([-1, 2, -3, 4], np.float32)}
    assert all(error.is_good for error in compare_cuts(graph, [first], [inputs]))


def test_random_numbers_that_nobody_needs_early_stay_in_the_cloud() -> None:
    nodes = [
        helper.make_node("RandomNormal", [], ["noise"], shape=[4]),
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Concat", ["a", "noise"], ["b"], axis=0),
        helper.make_node("Concat", ["b", "b"], ["y"], axis=0),
    ]
    values = [weight("w", np.zeros((9, 2), np.float32))]
    graph = view(model_of(nodes, [floats("x", [9])], [floats("y", [12])], values))
    assert [cut.name for cut in find_frontier(graph)] == ["a"]


def test_a_tensor_with_a_reserved_name_leaves_its_place_to_the_next_best() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], [OUTPUT]),
        helper.make_node("Relu", [OUTPUT], ["a"]),
        helper.make_node("Neg", [OUTPUT], ["b"]),
        helper.make_node("Concat", ["a", "b", "a", "b"], ["y"], axis=0),
    ]
    values = [weight("w", np.zeros((9, 2), np.float32))]
    graph = view(model_of(nodes, [floats("x", [9])], [floats("y", [8])], values))
    assert [cut.name for cut in find_frontier(graph)] == ["a+b"]


def test_costs_of_any_size_and_fineness_are_exact() -> None:
    nodes = [relu("a", "x"), relu("b", "a"), relu("y", "b")]
    graph = view(model_of(nodes, [floats("x", [1])], [floats("y", [1])]))
    tiny = 2.0**-900
    assert best_cut(graph, [1.0, 1.0, tiny], [1.0, 1.0 + tiny, 0.0], 0.0).name == "b"
    assert best_cut(graph, [1e300, 1.0, 9.0], [1e300, 2.0, 0.0], 0).name == "b"
    assert best_cut(graph, [2**200, 2**200, 9], [2**200, 2**200 + 1, 0], 7).name == "b"


@pytest.mark.parametrize(
    ("edge", "cloud", "price", "message"),
    [
        ([1.0], [1.0, 1.0], 1.0, "1 and 2 costs for 2 nodes"),
        ([1.0, float("nan")], [1.0, 1.0], 1.0, "not a finite number"),
        ([1.0, 1.0], [1.0, float("inf")], 1.0, "not a finite number"),
        ([1.0, 1.0], [1.0, 1.0], -1.0, r"a byte cannot cost -1\.0"),
    ],
)
def test_costs_that_make_no_sense_are_refused(
    edge: list[float], cloud: list[float], price: float, message: str
) -> None:
    nodes = [relu("a", "x"), relu("y", "a")]
    graph = view(model_of(nodes, [floats("x", [1])], [floats("y", [1])]))
    with pytest.raises(UsageError, match=message):
        best_cut(graph, edge, cloud, price)


def test_a_graph_of_one_node_that_costs_nothing_runs_on_the_edge() -> None:
    graph = view(model_of([relu("y", "x")], [floats("x", [1])], [floats("y", [1])]))
    assert best_cut(graph, [1.0], [1.0], 0).nodes == {0}
    assert find_frontier(graph) == []


def test_the_ends_may_be_the_cheapest() -> None:
    graph = view(fork_net())
    count = len(graph.nodes)
    assert best_cut(graph, [1.0] * count, [0.0] * count, 0.0).head == 0
    everything = best_cut(graph, [0.0] * count, [1.0] * count, 0.0)
    assert everything.nodes == frozenset(range(count))
    assert everything.egress == graph.outputs
