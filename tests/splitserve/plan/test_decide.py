"""The decision against brute force; every reason is true."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planned import EDGE, END, JPEG, SETUP, SPLIT, decide_among, offer

from splitserve.plan import Limits, Offer, Powers
from splitserve.plan.decide import best_worth, split_bands, worth_at
from splitserve.plan.report import reasons
from splitserve.plan.sentence import say
from splitserve.plan.units import read_rate
from splitserve.plans import Link, latency_s

RATES = np.logspace(3.2, 9.8, 67)
seconds = st.sampled_from([0.0, 0.001, 0.004, 0.01, 0.02, 0.05, 0.1])
FAST, MIDDLE, SLOW = (Link(uplink_bps=r, rtt_s=0.01) for r in (1e8, 2e6, 1e5))


@st.composite
def offer_lists(draw: st.DrawFn) -> list[Offer]:
    sizes = draw(st.lists(st.sampled_from([300, 1000, 4000, 9000, 30000]), max_size=8))
    found = [EDGE, JPEG]
    for index, size in enumerate(sizes):
        position = draw(st.integers(0, END - 1))
        found.append(offer(f"p{index}", position, size, draw(seconds), draw(seconds)))
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(offer_lists(), st.sampled_from([0.0, 0.01, 0.1]), st.integers(0, len(RATES) - 1))
def test_answer_envelope_and_reasons_agree_with_brute_force(
    tiny_artifact: Path, offers: list[Offer], rtt_s: float, index: int
):
    link = Link(uplink_bps=float(RATES[index]), rtt_s=rtt_s)
    decision = decide_among(offers, link, tiny_artifact)
    assert decision.answer is not None
    best = min(latency_s(one.option, link) for one in offers)
    assert latency_s(decision.answer.option, link) == best
    assert {v.offer.option.name for v in decision.verdicts} == {o.option.name for o in offers}
    by_name = {one.option.name: one.option for one in offers}
    for verdict in decision.verdicts:
        if verdict.offer is not decision.answer:
            assert verdict.reason
            _check_reason(verdict.offer, verdict.reason, by_name, rtt_s)


def _check_reason(one: Offer, reason: str, by_name: dict, rtt_s: float) -> None:
    def beats(name: str, rates) -> bool:
        links = [Link(uplink_bps=float(rate), rtt_s=rtt_s) for rate in rates]
        return all(
            latency_s(by_name[name], at) <= latency_s(one.option, at) + 1e-12 for at in links
        )

    everywhere = re.fullmatch(r"dominated by (.+) on every link", reason)
    if everywhere:
        assert beats(everywhere[1], RATES)
        return
    pair = re.fullmatch(r"dominated by (.+) up to (.+), by (.+) from there on", reason)
    if pair:
        rate = float(read_rate(pair[2]))
        assert beats(pair[1], RATES[rate * 0.99 > RATES])
        assert beats(pair[3], RATES[rate * 1.01 < RATES])
        return
    assert reason.startswith("fastest "), reason


@given(offer_lists(), st.sampled_from([0.0, 0.01]))
def test_b_star_is_where_a_sweep_finds_the_greatest_gain(offers: list[Offer], rtt_s: float):
    best = best_worth(offers, rtt_s, SETUP)
    if best is None:
        assert not any(one.is_split for one in offers)
        return
    for rate in RATES:
        here = worth_at(offers, Link(uplink_bps=float(rate), rtt_s=rtt_s), SETUP)
        assert here is not None
        assert here.gain <= best.gain * (1 + 1e-9)
        assert here.gain <= here.limit * (1 + 1e-9) or here.split.cloud_share < 1


def test_a_split_wins_between_its_two_thresholds(tiny_artifact: Path):
    offers = [EDGE, JPEG, SPLIT]
    names = [decide_among(offers, link, tiny_artifact).answer for link in (SLOW, MIDDLE, FAST)]
    assert names == [EDGE, SPLIT, JPEG]
    decision = decide_among(offers, MIDDLE, tiny_artifact)
    ((low, high),) = split_bands(decision)
    assert low < 2e6
    assert high is not None
    assert high > 2e6
    assert decision.here
    assert decision.here.gain > 1
    assert decision.here.gain < decision.here.bound <= decision.here.limit
    assert say(decision).startswith("Split at 2 Mbit/s and 10.0 ms: split answers in ")


def test_the_bound_is_reached_by_a_split_whose_codec_is_free(tiny_artifact: Path):
    free = offer("free", 1, 2_000, 0.002 + 0.2 * 0.12, 0.8 * 0.03)
    here = decide_among([EDGE, JPEG, free], MIDDLE, tiny_artifact).here
    assert here
    assert here.reached == pytest.approx(1)


REFUSALS = [
    (Limits(agreement=98.5), "misses the agreement floor: 98.2 < 98.5 %"),
    (Limits(memory_bytes=500_000), "over the memory: 1 > 0.5 MB"),
    (Limits(bans=("cut1",)), "banned"),
    (Limits(pins=("output", "input")), "pinned to output, input"),
    (Limits(leakage=0.3), "not audited"),
]


@pytest.mark.parametrize(
    ("limits", "reason"), REFUSALS, ids=lambda x: x if isinstance(x, str) else ""
)
def test_refusals_of_every_link_name_the_numbers(tiny_artifact: Path, limits: Limits, reason: str):
    decision = decide_among([EDGE, JPEG, SPLIT], MIDDLE, tiny_artifact, limits)
    (verdict,) = [v for v in decision.verdicts if v.offer is SPLIT]
    assert verdict.reason == reason
    assert not verdict.is_feasible
    assert "split" not in {stretch.option for stretch in decision.envelope}
    assert not decision.does_split
    assert "no split keeps to the limits (split: " + reason in say(decision)


def test_agreement_that_was_not_measured_is_refused_unless_nothing_is_asked(tiny_artifact: Path):
    unknown = offer("unknown", 1, 100, 0.004, 0.02, None)
    for floor, wanted in ((98.0, "agreement not measured: profile with --images DIR"), (0, None)):
        limits = Limits(agreement=floor)
        decision = decide_among([EDGE, unknown], MIDDLE, tiny_artifact, limits)
        assert [v.reason for v in decision.verdicts if v.offer is unknown] == [wanted]


def test_a_leakage_ceiling_refuses_the_picture_itself_and_never_edge_only(tiny_artifact: Path):
    decision = decide_among([EDGE, JPEG], FAST, tiny_artifact, Limits(leakage=0.3))
    assert [v.reason for v in decision.verdicts if v.offer is JPEG] == ["sends the picture itself"]
    assert decision.answer is EDGE


def test_a_deadline_refuses_on_this_link_and_says_from_where_it_is_met(tiny_artifact: Path):
    limits = Limits(deadline_s=0.06)
    decision = decide_among([EDGE, JPEG, SPLIT], SLOW, tiny_artifact, limits)
    found = {v.offer.option.name: v for v in decision.verdicts}
    assert decision.answer is None
    late = re.fullmatch(
        r"over the deadline: 355.1 ms at p90 > 60.0 ms \(met from (.+) Mbit/s\)",
        found["split"].reason or "",
    )
    assert late
    link = Link(uplink_bps=float(late[1]) * 1.01e6, rtt_s=0.01)
    assert decide_among([EDGE, SPLIT], link, tiny_artifact, limits).answer is SPLIT
    assert found["edge-only"].reason == "over the deadline: 134.2 ms at p90 > 60.0 ms"
    assert say(decision).startswith(
        "Do not split at 100 kbit/s and 10.0 ms: no plan keeps to every"
    )
    hopeless = decide_among([SPLIT], SLOW, tiny_artifact, Limits(deadline_s=0.01))
    assert "(met on no link)" in str(hopeless.verdicts[0].reason)


def test_an_energy_ceiling_counts_compute_and_radio(tiny_artifact: Path):
    powers = Powers(compute_w=2.0, radio_w=1.0, ceiling_j=0.1)
    assert powers.energy_j(SPLIT.option, MIDDLE) == pytest.approx(2 * 0.008 + 3800 * 8 / 2e6)
    decision = decide_among([EDGE, SPLIT], MIDDLE, tiny_artifact, Limits(powers=powers))
    (edge,) = [v for v in decision.verdicts if v.offer is EDGE]
    assert edge.reason == "over the energy: 0.244 > 0.1 J a request"
    assert decision.answer is SPLIT


def test_the_sentence_says_that_every_split_sends_more(tiny_artifact: Path):
    wide = offer("wide", 1, 17_600, 0.06, 0.015)
    for link in (SLOW, MIDDLE, FAST):
        decision = decide_among([EDGE, JPEG, wide], link, tiny_artifact)
        assert not decision.does_split
        assert say(decision).endswith(
            "a split is the fastest on no link; every split sends more (17.6 kB and up) than"
            " cloud jpeg (15.3 kB)."
        )


def test_reasons_of_one_kind_come_together(tiny_artifact: Path):
    low = [offer(f"low{i}", 1, 100, 0.004, 0.02, 90.0 + i) for i in range(2)]
    lines = reasons(decide_among([EDGE, *low], MIDDLE, tiny_artifact))
    assert lines == ["- misses the agreement floor: low0 (90 < 98 %), low1 (91 < 98 %)"]


def test_without_any_cut_there_is_nothing_to_split(tiny_artifact: Path):
    decision = decide_among([EDGE, JPEG], MIDDLE, tiny_artifact)
    assert decision.here is None
    assert decision.at_best is None
    assert "no cut to split at" in say(decision)


def test_a_gain_that_another_day_undoes_is_called_so(tiny_artifact: Path):
    link = Link(uplink_bps=3800 * 8 / 0.072, rtt_s=0.01)  # the split takes 120 ms, edge-only 122
    said = say(decide_among([EDGE, SPLIT], link, tiny_artifact))
    assert "1.02 times as fast as edge-only (122.0 ms); that is next to nothing." in said
