"""The cost of plans on a link: the envelope is the fastest plan at every rate."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitserve.plans import (
    Link,
    Load,
    PlanOption,
    best_option,
    latency_s,
    lower_envelope,
    throughput,
)

seconds = st.sampled_from([0.0, 0.001, 0.002, 0.003, 0.005, 0.008, 0.05, 0.5])


def option(name: str, bytes_up: float, edge_s: float, cloud_s: float) -> PlanOption:
    return PlanOption(
        name=name, cut="c", codec="x", bytes_up=bytes_up, edge_s=edge_s, edge_p90_s=edge_s,
        cloud_s=cloud_s, cloud_p90_s=cloud_s,
    )  # fmt: skip


@st.composite
def option_lists(draw: st.DrawFn) -> list[PlanOption]:
    sizes = draw(st.lists(st.sampled_from([0, 400, 1000, 2000, 3000, 9000]), min_size=1))
    return [option(str(i), size, draw(seconds), draw(seconds)) for i, size in enumerate(sizes)]


@given(option_lists(), st.sampled_from([0.0, 0.02, 0.2]), st.floats(3, 9))
def test_the_envelope_names_a_fastest_option_at_every_rate(
    options: list[PlanOption], rtt_s: float, power: float
):
    link = Link(uplink_bps=10**power, rtt_s=rtt_s)
    load = Load(edge=2.0, cloud=0.5, queue_s=0.01)
    stretches = lower_envelope(options, rtt_s, load)
    assert stretches[0].from_bps == 0
    assert stretches[-1].to_bps is None
    assert all(a.to_bps == b.from_bps for a, b in itertools.pairwise(stretches))
    named = next(s for s in stretches if s.to_bps is None or link.uplink_bps <= s.to_bps)
    by_name = {o.name: o for o in options}
    want = min(latency_s(o, link, load) for o in options)
    assert latency_s(by_name[named.option], link, load) == pytest.approx(want, rel=1e-9, abs=1e-12)
    assert latency_s(best_option(options, link, load), link, load) == want


def test_latency_adds_what_a_request_meets():
    link, load = Link(uplink_bps=8e6, rtt_s=0.02), Load(edge=2, cloud=3, queue_s=0.1)
    split = option("split", 1000, edge_s=0.05, cloud_s=0.01)
    assert latency_s(split, link, load) == pytest.approx(0.1 + 0.001 + 0.02 + 0.1 + 0.03)
    local = option("edge", 0, edge_s=0.05, cloud_s=0)
    assert latency_s(local, link, load) == pytest.approx(0.1)


def test_throughput_is_that_of_the_slowest_stage():
    link = Link(uplink_bps=8e6)
    assert throughput(option("a", 4000, 0.001, 0.002), link) == pytest.approx(250)
    assert throughput(option("b", 0, 0.01, 0), link) == pytest.approx(100)
    assert throughput(option("c", 0, 0, 0), link) == math.inf
