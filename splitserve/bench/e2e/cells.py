"""Latency: all arms in turn, over every link."""

from collections.abc import Callable, Sequence
from pathlib import Path

from splitserve.bench.e2e.arms import UNCOMPRESSED, Arm
from splitserve.bench.e2e.figures import Answer, Setting, arm_result, compare
from splitserve.bench.e2e.result import Cell
from splitserve.bench.e2e.rig import Rig
from splitserve.bench.link import LinkSettings, self_test
from splitserve.bench.measure import in_turn

RAW_EVERY = 4  # turns in which the uncompressed upload takes part; it takes seconds on slow links


def measure_cell(
    rig: Rig,
    arms: Sequence[Arm],
    setting: Setting,
    pictures: Sequence[tuple[Path, int]],
    turns: tuple[int, int],
    tick: Callable[[], None],
) -> Cell:
    """Run one cell; every turn begins with another arm.

    Args:
        rig: the running agents.
        arms: to run.
        setting: the link.
        pictures: with the unsplit model's class of each.
        turns: how many warm up, and how many count.
        tick: called after each turn.

    Raises:
        MeasurementError: the emulated link is off, or an agent gave no answer.
    """
    settings = LinkSettings(setting.link.uplink_bps, setting.rtt_s / 2)
    self_test(settings)
    rig.set_link(settings)
    warm_up, count = turns
    answers: dict[str, dict[int, Answer]] = {arm.name: {} for arm in arms}
    for turn in range(-warm_up, count):
        path, _ = pictures[turn % len(pictures)]
        for index in in_turn(len(arms), turn):
            arm = arms[index]
            if _takes_part(arm, turn):
                answer = rig.ask(arm.name, path)
                if turn >= 0:
                    answers[arm.name][turn] = answer
        tick()
    wanted = [pictures[turn % len(pictures)][1] for turn in range(count)]
    rows = [arm_result(arm, answers[arm.name], wanted, setting.link) for arm in arms]
    return compare(setting, rows, answers)


def _takes_part(arm: Arm, turn: int) -> bool:
    is_raw = arm.role == "cloud" and arm.offer and arm.offer.option.codec == UNCOMPRESSED
    return not is_raw or turn % RAW_EVERY == 0
