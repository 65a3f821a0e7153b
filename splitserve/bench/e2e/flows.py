"""Throughput: many pictures under way at once, so that device, link and cloud overlap."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from splitserve.bench.e2e.arms import Arm
from splitserve.bench.e2e.result import Flow, Ratio, Throughput
from splitserve.bench.e2e.rig import ANSWER_S, Rig
from splitserve.bench.link import LinkSettings, self_test
from splitserve.bench.measure import in_turn, median
from splitserve.errors import MeasurementError
from splitserve.plan import Offer
from splitserve.plans import Link, PlanOption, latency_s, throughput

FILL = 5  # answers until the pipeline is full
BLOCKS = 5
IN_FLIGHT = 8


def crossing_bps(edge: PlanOption, upload: PlanOption) -> float:
    """Rate at which an upload's transfer takes as long as the whole model on the device."""
    return 8 * upload.bytes_up / edge.edge_s


def best_flow(offers: Sequence[Offer], link: Link) -> Offer | None:
    """The split with the highest predicted throughput; of equal ones the faster."""
    splits = [offer for offer in offers if offer.is_split]
    return max(
        splits,
        key=lambda o: (throughput(o.option, link), -latency_s(o.option, link)),
        default=None,
    )


def beside(edge: PlanOption, upload: PlanOption, link: Link) -> float:
    """Answers a second of an upload worker and an edge-only worker on one device, by the profile.

    The upload goes first; edge-only has what it leaves of the device.
    """
    uploads = throughput(upload, link)
    left = max(0.0, 1 - uploads * upload.edge_s)
    return uploads + left / edge.edge_s


def measure_flows(
    rig: Rig,
    arms: Sequence[Arm],
    link: Link,
    pictures: Sequence[Path],
    tick: Callable[[], None],
) -> list[Flow]:
    """Answers a second of every arm, block after block in turn.

    Args:
        rig: running agents that take several pictures at once.
        arms: to run.
        link: as the planner sees it.
        pictures: of one block.
        tick: called after each block of an arm.

    Raises:
        MeasurementError: the emulated link is off, or an agent gave no answer.
    """
    settings = LinkSettings(link.uplink_bps, link.rtt_s / 2)
    self_test(settings)
    rig.set_link(settings)
    blocks: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for turn in range(BLOCKS):
        for index in in_turn(len(arms), turn):
            name = arms[index].name
            blocks[name].append(_block(rig, name, pictures))
            tick()
    return [
        Flow(
            arm.name, arm.role, median(blocks[arm.name]), tuple(blocks[arm.name]), _says(arm, link)
        )
        for arm in arms
    ]


def _says(arm: Arm, link: Link) -> float:
    return throughput(arm.offer.option, link) if arm.offer else 0.0


def _block(rig: Rig, name: str, pictures: Sequence[Path]) -> float:
    agent, heard = rig.agents[name], []
    for picture in pictures:
        agent.say(str(picture))
    for picture in pictures:
        answer = agent.hear(ANSWER_S)
        if answer["error"] or answer["fallback"]:
            raise MeasurementError(
                f"{name}: {picture.name}: {answer['error'] or answer['fallback']}"
            )
        heard.append(time.perf_counter())
    return (len(heard) - FILL) / (heard[-1] - heard[FILL - 1])


def as_throughput(
    slowdown: float, link: Link, flows: Sequence[Flow], side_by_side: float
) -> Throughput:
    """Put the figures together; the gain's interval is its range over the blocks."""
    extremes = [flow for flow in flows if flow.role != "split"]
    split = max((f for f in flows if f.role == "split"), key=lambda f: f.per_s)
    best = max(extremes, key=lambda flow: flow.per_s)
    ratios = [a / b for a, b in zip(split.blocks, best.blocks, strict=True)]
    gain = Ratio(split.per_s / best.per_s, min(ratios), max(ratios))
    return Throughput(slowdown, link.uplink_bps, link.rtt_s, tuple(flows), side_by_side, gain)
