"""The rules of the controller, mostly over simulated links, machines and requests."""

import random
import statistics
import time
from collections.abc import Callable

import pytest
from simulation import DEADLINE_S, EDGE_S, OPTIONS, PERIOD_S, Simulation, World, option

from edge_agent.controller import Controller
from edge_agent.estimate import Transfer
from splitserve.errors import UsageError
from splitserve.plans import Link, PlanOption, latency_s
from splitserve.wire import Timings

STEPS_BPS = (20e6, 1e6, 5e6, 0.0, 20e6)
# A device so fast that edge-only is the best at 1 Mbit/s.
FAST_EDGE = (
    option("edge", 0, 0.12, 0.0),
    option("deep", 1500, 0.1, 0.004),
    option("jpeg", 20000, 0.02, 0.016),
)


def staircase(each_s: float) -> Callable[[float], World]:
    """The trace of the issue, each step for some seconds."""
    last = len(STEPS_BPS) - 1
    return lambda now_s: World(STEPS_BPS[min(last, int((now_s + 1e-9) / each_s))])


def regret(simulation: Simulation) -> float:
    """Time taken over that of one who knows the link and has no noise."""
    requests = simulation.requests
    return sum(one.took_s for one in requests) / sum(one.best_s for one in requests)


def test_prediction_is_the_cost_model() -> None:
    link = Link(uplink_bps=3e6, rtt_s=0.04)
    controller = Controller(OPTIONS, DEADLINE_S, link)
    assert list(controller.predict()) == pytest.approx([latency_s(one, link) for one in OPTIONS])


def test_the_first_choice_is_the_best_on_the_expected_link() -> None:
    for bps in (0.05e6, 1e6, 20e6):
        link = Link(uplink_bps=bps, rtt_s=0.02)
        best = min(OPTIONS, key=lambda one: latency_s(one, link))
        choice = Controller(OPTIONS, DEADLINE_S, link).choose(0.0)
        assert OPTIONS[choice.option] == best
        assert choice.switch is None


def test_options_without_a_local_one_are_refused() -> None:
    with pytest.raises(UsageError, match="splitserve plan"):
        Controller(OPTIONS[1:], DEADLINE_S)


@pytest.mark.parametrize("options", [OPTIONS, FAST_EDGE])
@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("seed", range(3))
def test_the_plan_follows_the_link_within_two_requests_of_each_step(
    options: tuple[PlanOption, ...], noise: float, seed: int
) -> None:
    each_s = 6.0
    link = Link(uplink_bps=20e6, rtt_s=0.02)
    simulation = Simulation(staircase(each_s), noise, options, expected=link, seed=seed).run(
        each_s * len(STEPS_BPS)
    )
    for step, bps in enumerate(STEPS_BPS):
        there = [one for one in simulation.requests if step * each_s <= one.at_s + 1e-9]
        settled = [one for one in there if one.at_s < (step + 1) * each_s][2 if step else 0 :]
        assert len(settled) > 20
        world = World(bps)
        for one in settled:
            taken_s, best_s = world.truth_s(one.option), world.truth_s(one.best)
            assert one.is_trial or taken_s <= 1.12 * best_s, (step, one)
    assert regret(simulation) <= 1.08


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", [OPTIONS, FAST_EDGE])
def test_regret_over_the_whole_staircase_is_small_with_much_noise(
    options: tuple[PlanOption, ...], seed: int
) -> None:
    simulation = Simulation(staircase(30.0), 0.1, options, seed=seed).run(150.0)
    assert regret(simulation) <= 1.05
    static = [
        sum(
            min(DEADLINE_S, simulation.world(one.at_s).truth_s(plan)) for one in simulation.requests
        )
        for plan in options
    ]
    assert sum(one.took_s for one in simulation.requests) <= 0.95 * min(static)
    assert len(simulation.switches) <= 10


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bps", [0.22e6, 1.9e6, 2.0e6, 2.1e6])
def test_the_plan_does_not_flap_at_a_crossing(bps: float, seed: int) -> None:
    link = Link(uplink_bps=bps, rtt_s=0.02)
    simulation = Simulation(lambda _: World(bps), 0.1, expected=link, seed=seed)
    simulation.run(200 * 0.3)
    assert len(simulation.requests) >= 190
    assert len(simulation.switches) <= 3
    assert regret(simulation) <= 1.08


@pytest.mark.parametrize("outlier_s", [0.0, 0.001, 1.5])
def test_one_wild_transfer_changes_nothing(outlier_s: float) -> None:
    def bend(number: int, seconds: float) -> float:
        return outlier_s if number == 30 else seconds

    for bps in (1e6, 20e6):
        link = Link(uplink_bps=bps, rtt_s=0.02)
        simulation = Simulation(lambda _, bps=bps: World(bps), 0.02, expected=link, bend=bend)
        simulation.run(20.0)
        assert simulation.switches == []
        assert simulation.controller.link.uplink_bps == pytest.approx(bps, rel=0.25)


def test_a_cloud_five_times_slower_is_left_where_that_pays_and_taken_up_again() -> None:
    options = (
        option("edge", 0, EDGE_S, 0.0),
        option("middle", 4000, 0.12, 0.02),
        option("jpeg", 20000, 0.02, 0.06),
    )

    def world(now_s: float) -> World:
        return World(cloud=5.0 if 10 <= now_s < 20 else 1.0)

    link = Link(uplink_bps=20e6, rtt_s=0.02)
    simulation = Simulation(world, 0.03, options, expected=link).run(30.0)
    assert [(switch.before, switch.after) for _, switch in simulation.switches] == [
        ("jpeg", "edge"), ("edge", "jpeg"),
    ] or [(switch.before, switch.after) for _, switch in simulation.switches] == [
        ("jpeg", "middle"), ("middle", "jpeg"),
    ]  # fmt: skip
    assert 10 <= simulation.switches[0][0] <= 11.5
    assert 20 <= simulation.switches[1][0] <= 21.5
    assert simulation.switches[0][1].cloud_load == pytest.approx(5, rel=0.2)
    assert regret(simulation) <= 1.05


@pytest.mark.parametrize(
    "bad", [{"queue_s": 0.6}, {"edge": 4.0, "uplink_bps": 1e6}, {"cloud": 20.0}]
)
def test_a_load_moves_the_plan_there_and_back(bad: dict[str, float]) -> None:
    good = World(uplink_bps=bad.get("uplink_bps", 20e6))

    def world(now_s: float) -> World:
        return World(**{"uplink_bps": good.uplink_bps} | bad) if 10 <= now_s < 20 else good

    link = Link(uplink_bps=good.uplink_bps, rtt_s=0.02)
    simulation = Simulation(world, 0.03, expected=link).run(30.0)
    assert 2 <= len(simulation.switches) <= 3
    assert simulation.requests[0].option == simulation.requests[-1].option
    assert regret(simulation) <= 1.09  # two requests each time, which is by design


def test_profiles_that_disagree_do_not_make_two_plans_take_turns() -> None:
    """In truth b is slower than a, but its profile claims the contrary."""
    wrong = (OPTIONS[0], option("a", 4000, 0.08, 0.01), option("b", 8000, 0.06, 0.01))
    right = (OPTIONS[0], option("a", 4000, 0.08, 0.01), option("b", 8000, 0.085, 0.01))
    link = Link(uplink_bps=1e6, rtt_s=0.02)
    simulation = Simulation(lambda now_s: World(1e6 if now_s < 6 else 20e6), 0.03, right)
    simulation.controller = Controller(wrong, DEADLINE_S, link)
    simulation.run(60.0)
    taken = [switch.after for _, switch in simulation.switches]
    assert taken[0] == "b"
    assert len(taken) <= 2


def test_an_outage_costs_one_waiting_and_the_way_back_is_found_at_once() -> None:
    def world(now_s: float) -> World:
        return World(0.0 if 10 <= now_s < 22 else 20e6)

    simulation = Simulation(world, 0.02, expected=Link(uplink_bps=20e6, rtt_s=0.02)).run(30.0)
    away = [one for one in simulation.requests if 10 <= one.at_s < 22]
    assert [one.option.name for one in away] == ["jpeg"] + ["edge"] * (len(away) - 1)
    assert max(one.took_s for one in away) <= 2 * EDGE_S + 0.3
    back = [one for one in simulation.requests if one.at_s >= 22]
    assert {one.option.name for one in back} == {"jpeg"}
    assert [switch.reason for _, switch in simulation.switches] == ["away", "recovery"]


def test_an_overdue_reply_moves_the_plan_at_once_until_it_is_there() -> None:
    controller = Controller(OPTIONS, DEADLINE_S, Link(uplink_bps=20e6, rtt_s=0.02))
    jpeg = controller.choose(0.0).option
    assert OPTIONS[jpeg].name == "jpeg"
    controller.overdue()
    choice = controller.choose(0.2)
    assert OPTIONS[choice.option].is_local
    assert choice.switch is not None
    assert choice.switch.reason == "overdue"
    assert choice.probe is None
    controller.transferred(jpeg, Transfer(0.3, 20000, 0.3), Timings(0, 0.004, 0.012))
    controller.overdue_ended()
    assert OPTIONS[controller.choose(0.4).option].name == "middle"


def test_waiting_is_worth_as_much_as_finishing_here() -> None:
    controller = Controller(OPTIONS, DEADLINE_S, Link(uplink_bps=20e6, rtt_s=0.02))
    short, long = (controller.patience_s(3, finish_s) for finish_s in (0.1, 0.4))
    assert 0.1 < short < 0.4
    assert long - short == pytest.approx(0.3)


def test_an_option_that_misses_the_deadline_is_not_chosen_while_another_meets_it() -> None:
    options = (option("edge", 0, 0.5, 0.0), option("jpeg", 20000, 0.02, 0.016))
    link = Link(uplink_bps=0.35e6, rtt_s=0.02)  # 513 ms by jpeg
    assert Controller(options, 2.0, link).choose(0.0).option == 0
    controller = Controller(options, 0.51, link)
    assert controller.choose(0.0).option == 0
    controller.probe_ended(0.001)
    assert Controller(options, 0.1, link).choose(0.0).option == 0  # none meets it: the fastest
    for number in range(6):
        controller.edge_ran(0, 0.515)
        assert controller.choose(number * PERIOD_S).option == 0
    controller.transferred(1, Transfer(1.0, 20000, 0.42), Timings(0, 0.0, 0.016))
    controller.transferred(1, Transfer(1.2, 20000, 0.42), Timings(0, 0.0, 0.016))
    chosen = set()
    for number in range(3):
        controller.edge_ran(0, 0.515)
        chosen.add(controller.choose(2 + number * PERIOD_S).option)
    assert 1 in chosen  # under 10 % faster, but in time


def test_probes_on_edge_only_take_half_of_the_link_at_most() -> None:
    simulation = Simulation(
        lambda _: World(1e6), 0.02, FAST_EDGE, expected=Link(uplink_bps=1e6, rtt_s=0.02)
    ).run(40.0)
    assert {one.option.name for one in simulation.requests} == {"edge"}
    probes = sum(one.probe is not None for one in simulation.requests)
    assert probes >= 0.8 * len(simulation.requests)  # they cost this link next to nothing
    slow = Simulation(lambda _: World(0.05e6), 0.02, FAST_EDGE).run(40.0)
    sent_s = sum(0.02 + 8 * one.probe.bytes_up / 0.05e6 for one in slow.requests if one.probe)
    assert sent_s <= 0.5 * slow.now_s + 4  # the last one may reach over the end


def test_probes_that_are_dear_to_encode_become_rare() -> None:
    controller = Controller(FAST_EDGE, DEADLINE_S, Link(uplink_bps=0.1e6, rtt_s=0.02))
    probes = 0
    for number in range(100):
        choice = controller.choose(number * PERIOD_S)
        assert choice.option == 0
        controller.edge_ran(0, 0.1)
        if choice.probe is not None:
            probes += 1
            controller.probe_ended(0.04)  # 40 % of a request
    assert 100 * 0.04 / 0.4 - 1 <= probes <= 100 * 0.04 / 0.4 + 2


def test_one_probe_that_a_busy_machine_held_up_does_not_end_probing() -> None:
    controller = Controller(FAST_EDGE, DEADLINE_S, Link(uplink_bps=0.1e6, rtt_s=0.02))
    probed = []
    for number in range(40):
        choice = controller.choose(number * PERIOD_S)
        controller.edge_ran(0, 0.1)
        if choice.probe is not None:
            probed.append(number)
            controller.probe_ended(2.0 if len(probed) == 3 else 0.003)
    assert len(probed) >= 18
    first = Controller(FAST_EDGE, DEADLINE_S, Link(uplink_bps=0.1e6, rtt_s=0.02))
    waits = []
    for number in range(40):
        choice = first.choose(number * PERIOD_S)
        first.edge_ran(0, 0.1)
        if choice.probe is not None:
            waits.append(number)
            first.probe_ended(2.0 if len(waits) == 1 else 0.003)
    assert waits[1] - waits[0] <= 25  # even where nothing else is known of what a probe costs


def test_a_reply_that_waited_for_a_silent_link_is_soon_doubted() -> None:
    """A probe that met an outage comes back late, and tells nothing of the link that is there."""
    controller = Controller(FAST_EDGE, DEADLINE_S, Link(uplink_bps=0.5e6, rtt_s=0.02))

    def probed(now_s: float, requests: int, took_s: float) -> int:
        """Let requests flow, each probe answered at once; how many probes there were."""
        probes = 0
        for number in range(requests):
            at_s = now_s + number * PERIOD_S
            probe = controller.choose(at_s).probe
            controller.edge_ran(0, 0.12)
            if probe is not None:
                probes += 1
                size_bytes = FAST_EDGE[probe].bytes_up
                transfer_s = took_s or 0.02 + 8 * size_bytes / 0.5e6
                transfer = Transfer(at_s, size_bytes, transfer_s)
                controller.transferred(probe, transfer, Timings(0, 0, 0.016))
                controller.probe_ended(0.003)
        return probes

    assert probed(0.0, 20, 0.0) >= 5
    assert probed(20.0, 1, 8.0) == 1
    assert probed(20.5, 3, 0.0) >= 1


def test_one_probe_at_a_time() -> None:
    controller = Controller(FAST_EDGE, DEADLINE_S, Link(uplink_bps=0.1e6, rtt_s=0.02))
    choices = [controller.choose(number * PERIOD_S) for number in range(20)]
    assert sum(choice.probe is not None for choice in choices) == 1


def test_away_probes_only_when_the_breaker_would_let_them_through() -> None:
    controller = Controller(OPTIONS, DEADLINE_S)
    controller.choose(0.0)
    assert controller.choose(0.2, is_away=True).probe is None
    choice = controller.choose(0.4, is_away=True, may_probe=True)
    assert choice.probe is not None
    assert not OPTIONS[choice.probe].is_local


def test_a_longer_round_trip_is_told_from_a_slower_link_by_trying_another_size() -> None:
    def world(now_s: float) -> World:
        return World(20e6, rtt_s=0.02 if now_s < 10 else 0.12)

    simulation = Simulation(world, 0.02, expected=Link(uplink_bps=20e6, rtt_s=0.02)).run(30.0)
    link = simulation.controller.link
    assert simulation.requests[-1].option.name == "jpeg"
    assert link.rtt_s == pytest.approx(0.12, rel=0.1)
    assert regret(simulation) <= 1.05


def test_trials_cost_at_most_one_percent() -> None:
    for bps in (0.8e6, 1.2e6, 1.6e6):
        simulation = Simulation(
            lambda _, bps=bps: World(bps), 0.0, expected=Link(uplink_bps=bps, rtt_s=0.02)
        ).run(80.0)
        assert {one.option.name for one in simulation.requests if not one.is_trial} == {"middle"}
        assert regret(simulation) <= 1.011


def test_a_switch_carries_its_numbers() -> None:
    simulation = Simulation(staircase(6.0), expected=Link(uplink_bps=20e6, rtt_s=0.02)).run(12.0)
    _, switch = simulation.switches[0]
    assert (switch.before, switch.after, switch.reason) == ("jpeg", "middle", "gain")
    assert switch.uplink_bps == pytest.approx(1e6, rel=0.05)
    assert switch.rtt_s == pytest.approx(0.02, rel=0.05)
    assert (switch.edge_load, switch.cloud_load, switch.queue_s) == (1.0, 1.0, 0.0)
    assert switch.before_s > 1.1 * switch.after_s


def test_nonsense_from_the_cloud_breaks_nothing() -> None:
    controller = Controller(OPTIONS, DEADLINE_S)
    wild = (0.0, 1e-9, 1e9, float("inf"), float("nan"))
    generator = random.Random(1)
    for number in range(400):
        choice = controller.choose(number * PERIOD_S)
        one = choice.option if choice.probe is None else choice.probe
        times = [generator.choice(wild) for _ in range(4)]
        controller.transferred(one, Transfer(number, 4000, times[0]), Timings(*times[1:]))
        controller.edge_ran(choice.option, generator.choice(wild))
    assert 0 <= choice.option < len(OPTIONS)


def test_a_decision_takes_less_than_a_tenth_of_a_millisecond() -> None:
    controller = Controller(OPTIONS * 2, DEADLINE_S, Link(uplink_bps=2e6, rtt_s=0.02))
    generator, times_s, told_s = random.Random(0), [], []
    for number in range(300):
        started = time.perf_counter()
        choice = controller.choose(number * PERIOD_S)
        times_s.append(time.perf_counter() - started)
        transfer = Transfer(number, generator.choice((4000, 20000)), generator.uniform(0.05, 0.06))
        started = time.perf_counter()
        controller.edge_ran(choice.option, 0.1)
        controller.transferred(choice.option, transfer, Timings(0.0, 0.002, 0.01))
        told_s.append(time.perf_counter() - started)
    assert statistics.median(times_s) <= 1e-4
    assert statistics.median(told_s) <= 2e-3
