"""What each way to run a model costs on a link, and the file in which the planner hands them on.

On a link with uplink rate B and round trip R a plan takes

    edge + 8 * bytes_up / B + R + cloud + queue        (edge-only: edge alone)

so over x = 1 / B every plan is a straight line, and the best one at every rate is the lower
envelope of these lines. Offline the planner lists it; on the device the agent looks plans up with
the link and the load of the moment. Source: the project's research notes, cost model and envelope.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from splitserve.documents import read_document

FILE_LIMIT_BYTES = 4 * 1024 * 1024


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class Link(_Part):
    """A link as one request meets it."""

    uplink_bps: float = Field(gt=0)
    rtt_s: float = Field(default=0.0, ge=0)
    """Round trip of a small message, the reply's transfer included."""


class Load(_Part):
    """How much slower both sides are than when they were measured."""

    edge: float = Field(default=1.0, gt=0)
    cloud: float = Field(default=1.0, gt=0)
    queue_s: float = Field(default=0.0, ge=0)
    """Seconds a request waits in the cloud before its work begins."""


class PlanOption(_Part):
    """One way to run the model, as measured."""

    name: str
    cut: str
    codec: str
    """`none` where nothing travels."""
    quality: float | None = None
    bytes_up: float = Field(ge=0)
    """Mean bytes of a request frame, everything counted; 0 where nothing travels."""
    edge_s: float = Field(ge=0)
    """Median seconds on the device: picture, head and encoding."""
    edge_p90_s: float = Field(ge=0)
    cloud_s: float = Field(ge=0)
    """Median seconds in the cloud: decoding and tail."""
    cloud_p90_s: float = Field(ge=0)
    agreement: float | None = Field(default=None, ge=0, le=100)
    """Percent of answers that are those of the unsplit model; None where not measured."""
    memory_bytes: int | None = Field(default=None, ge=0)
    """Weights and largest features that the device needs for it."""

    @property
    def is_local(self) -> bool:
        """Whether it answers on the device alone."""
        return self.bytes_up == 0


IDLE = Load()


def latency_s(option: PlanOption, link: Link, load: Load = IDLE) -> float:
    """Seconds from taking an input to having its answer."""
    edge_s = option.edge_s * load.edge
    if option.is_local:
        return edge_s
    transfer_s = 8 * option.bytes_up / link.uplink_bps
    return edge_s + transfer_s + link.rtt_s + load.queue_s + option.cloud_s * load.cloud


def throughput(option: PlanOption, link: Link, load: Load = IDLE) -> float:
    """Requests a second when head, link and tail work on different inputs at the same time."""
    stages_s = [option.edge_s * load.edge]
    if not option.is_local:
        stages_s += [8 * option.bytes_up / link.uplink_bps, option.cloud_s * load.cloud]
    slowest_s = max(stages_s)
    return 1 / slowest_s if slowest_s else math.inf


def best_option(options: Sequence[PlanOption], link: Link, load: Load = IDLE) -> PlanOption:
    """The fastest option on a link; of equal ones the first."""
    return min(options, key=lambda option: latency_s(option, link, load))


class PlanFile(_Part):
    """What the planner hands to a device: the options that may be the fastest on some link."""

    schema_version: Literal[1] = 1
    artifact_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    """The artifact that was profiled; plans of another one are refused."""
    options: tuple[PlanOption, ...] = Field(min_length=1)
    """Members of the envelope and, the last resort, edge-only; the fewest bytes first."""
    expected: Link | None = None
    """The link that was planned for, from which the device's estimates start."""
    upload_budget: float | None = Field(default=None, ge=0, le=100)
    """Percent of the inputs to upload where a plan cuts at an exit; None leaves exits alone."""


def read_plans(path: Path) -> PlanFile:
    """Read a plan file.

    Raises:
        UsageError: no such file, or not one of ours; the message names the fix.
    """
    return read_document(path, PlanFile, FILE_LIMIT_BYTES, f"splitserve plan ARTIFACT -o {path}")


class Stretch(_Part):
    """A range of uplink rates in which one option is the fastest."""

    option: str
    from_bps: float = Field(ge=0)
    to_bps: float | None = Field(default=None, gt=0)
    """None: without end."""


def lower_envelope(options: Sequence[PlanOption], rtt_s: float, load: Load = IDLE) -> list[Stretch]:
    """The fastest option at every uplink rate, from the slowest link to the fastest.

    Lines over x = 1 / B, sorted by slope, kept as an upper-left hull: O(n log n).

    Args:
        options: at least one.
        rtt_s: round trip, seconds.
        load: of both sides.
    """
    lines = sorted(
        ((8 * option.bytes_up, _fixed_s(option, rtt_s, load), option.name) for option in options),
        key=lambda line: (line[0], line[1]),
    )
    hull: list[tuple[float, float, str]] = []
    for line in lines:
        if hull and (hull[-1][0] == line[0] or hull[-1][1] <= line[1]):
            continue  # no flatter line starts higher: it loses everywhere
        while len(hull) >= 2 and _meet(hull[-2], line) >= _meet(hull[-2], hull[-1]):
            hull.pop()
        hull.append(line)
    # The flattest comes first: it wins on the slowest links, where x is large.
    bounds = [1 / _meet(hull[i], hull[i + 1]) for i in range(len(hull) - 1)]
    starts, ends = [0.0, *bounds], [*bounds, None]
    return [
        Stretch(option=line[2], from_bps=start, to_bps=end)
        for line, start, end in zip(hull, starts, ends, strict=True)
    ]


def _fixed_s(option: PlanOption, rtt_s: float, load: Load) -> float:
    """Seconds that do not depend on the rate."""
    if option.is_local:
        return option.edge_s * load.edge
    return option.edge_s * load.edge + rtt_s + load.queue_s + option.cloud_s * load.cloud


def _meet(flat: tuple[float, float, str], steep: tuple[float, float, str]) -> float:
    """X at which two lines have the same value."""
    return (flat[1] - steep[1]) / (steep[0] - flat[0])
