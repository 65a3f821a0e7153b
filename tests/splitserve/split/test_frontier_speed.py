"""The search for cuts in graphs of a thousand nodes, within the time that it may take."""

import random
import time

import numpy as np
import onnx
import pytest
from graphs import floats, model_of, weight
from onnx import helper

from splitserve.split import find_cuts, find_frontier
from splitserve.split.graph import GraphView, view


class Net:
    """A model under construction: matrix products of chosen widths, and concatenations."""

    def __init__(self, width: int) -> None:
        self.widths = {"x": width}
        self.nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, onnx.TensorProto] = {}

    def product(self, source: str, width: int) -> str:
        shape = (self.widths[source], width)
        name = f"w{shape[0]}x{shape[1]}"
        self._weights.setdefault(name, weight(name, np.zeros(shape, np.float32)))
        return self._add(helper.make_node("MatMul", [source, name], [self._next()]), width)

    def relu(self, source: str) -> str:
        return self._add(helper.make_node("Relu", [source], [self._next()]), self.widths[source])

    def concat(self, *sources: str) -> str:
        width = sum(self.widths[name] for name in sources)
        return self._add(helper.make_node("Concat", sources, [self._next()], axis=1), width)

    def _next(self) -> str:
        return f"t{len(self.nodes)}"

    def _add(self, node: onnx.NodeProto, width: int) -> str:
        self.nodes.append(node)
        self.widths[node.output[0]] = width
        return str(node.output[0])

    def graph(self) -> GraphView:
        last = self._next()
        self.nodes[-1].output[0], old = last, self.nodes[-1].output[0]
        ends = [floats("x", ["n", self.widths["x"]])], [floats(last, ["n", self.widths[old]])]
        return view(model_of(self.nodes, *ends, list(self._weights.values())))


def blocks_net() -> Net:
    """1,000 nodes in blocks of four branches, as detectors and inception networks have them."""
    net, rng = Net(400), random.Random(0)
    last, scale = "x", 90.0
    while len(net.nodes) < 1000:
        ends = []
        for _ in range(4):
            branch = last
            for _ in range(rng.randint(1, 4)):
                branch = net.relu(net.product(branch, rng.randint(1, 2 + int(scale))))
            ends.append(branch)
        last, scale = net.concat(*ends), scale * 0.95
    return net


def skips_net() -> Net:
    """1,000 nodes in one block: a U-Net of 250 levels whose skips are narrow beside its layers."""
    net, rng = Net(800), random.Random(0)
    layer, skips = "x", []
    for level in range(250):
        layer = net.product(layer, int(rng.uniform(600, 800) / (level + 1) ** 0.5))
        skips.append(net.product(layer, 1))
    for skip in reversed(skips):
        layer = net.product(net.concat(layer, skip), 1 + net.widths[layer])
    return net


def branches_net() -> Net:
    """1,000 nodes in one block: 20 chains of 49 products side by side."""
    net, rng = Net(3000), random.Random(0)
    ends = []
    for _ in range(20):
        branch = "x"
        for step in range(49):
            branch = net.product(branch, rng.randint(1, 4 + 2 * (49 - step)))
        ends.append(branch)
    net.concat(*ends)
    return net


@pytest.mark.parametrize(
    ("net", "least_singles", "least_frontier"),
    [(blocks_net(), 20, 10), (skips_net(), 0, 8), (branches_net(), 0, 20)],
    ids=["blocks", "skips", "branches"],
)
def test_a_thousand_nodes_are_searched_in_seconds(
    net: Net, least_singles: int, least_frontier: int
) -> None:
    graph = net.graph()
    assert len(graph.nodes) >= 980
    started = time.perf_counter()
    singles = find_cuts(graph)
    singles_s = time.perf_counter() - started
    started = time.perf_counter()
    frontier = find_frontier(graph)
    frontier_s = time.perf_counter() - started
    assert len(singles) >= least_singles
    assert len(frontier) >= least_frontier
    assert any(len(cut.egress) > 1 for cut in frontier)
    assert singles_s <= 0.5
    assert frontier_s <= 5
