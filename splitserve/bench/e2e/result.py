"""What a comparison found, as data: the JSON document, and what the report is made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field

STAGES = (
    "picture", "normalise", "head", "edge_tail", "encode", "network", "queue", "cloud_decode",
    "tail", "cloud_wait",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of two medians with its bootstrap 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One arm in one cell.

    Args:
        name: of the arm.
        role: of the arm.
        requests: answers that count.
        p50_s: median seconds from taking the picture up to its answer.
        p95_s: 95th percentile of the same.
        bytes_up: median bytes of the request frames.
        agree: share of answers with the unsplit model's best class.
        fallbacks: answers that the edge gave because the cloud was late.
        predicted_s: what the planner said; None for the adaptive agent.
        error: (predicted - measured) / measured.
        stages_s: median seconds of each stage.
    """

    name: str
    role: str
    requests: int
    p50_s: float
    p95_s: float
    bytes_up: float
    agree: float
    fallbacks: int
    predicted_s: float | None
    error: float | None
    stages_s: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Gain:
    """The best split against the better extreme, measured.

    Args:
        split: the fastest measured split.
        extreme: the faster of edge-only and the cloud alone, measured.
        ratio: extreme over split.
        predicted: the same by the planner.
        bound: the most that these cuts could reach if codecs cost nothing.
        reached: ratio over bound.
    """

    split: str
    extreme: str
    ratio: Ratio
    predicted: float
    bound: float
    reached: float


@dataclass(frozen=True, slots=True)
class Cell:
    """One link and one slowdown.

    Args:
        name: of the link.
        slowdown: asked for.
        slowdown_measured: median over all answers.
        rate_bps: of the link, either direction.
        rtt_s: of the link.
        is_crossing: whether the rate is B*, where a split is worth most.
        arms: measured.
        planner: what the planner chose for this link.
        best: the fastest measured candidate.
        regret: the planner's choice over the best, less 1.
        extreme_regret: the planner's choice over the better of edge-only and cloud-only, less 1.
        adaptive_regret: the adaptive agent over the best, less 1.
        gain: None where there is no split.
    """

    name: str
    slowdown: float
    slowdown_measured: float
    rate_bps: float
    rtt_s: float
    is_crossing: bool
    arms: tuple[ArmResult, ...]
    planner: str
    best: str
    regret: Ratio
    extreme_regret: Ratio
    adaptive_regret: Ratio
    gain: Gain | None


@dataclass(frozen=True, slots=True)
class Flow:
    """One arm's throughput, answers a second.

    Args:
        name: of the arm.
        role: of the arm.
        per_s: median over the blocks.
        blocks: each block's.
        predicted: by the planner.
    """

    name: str
    role: str
    per_s: float
    blocks: tuple[float, ...]
    predicted: float


@dataclass(frozen=True, slots=True)
class Throughput:
    """Pictures a second with several under way, where the upload takes as long as the edge.

    Args:
        slowdown: asked for.
        rate_bps: of the link: 8 x bytes of the upload / time of edge-only.
        rtt_s: of the link.
        flows: measured.
        beside: what edge-only and upload workers would give side by side on this device, computed
            from the profile.
        gain: the best split over the better extreme.
    """

    slowdown: float
    rate_bps: float
    rtt_s: float
    flows: tuple[Flow, ...]
    beside: float
    gain: Ratio


@dataclass(frozen=True, slots=True)
class Summary:
    """All cells together.

    Args:
        error_median: of |predicted - measured| / measured over all arms and cells.
        error_p90: of the same.
        within_regret: share of cells in which the planner's choice is within 5 % of the best.
        worst_regret: largest regret of the planner.
        worst_extreme_regret: most that the planner's choice lost to the better extreme.
        worst_adaptive_regret: most that the adaptive agent lost to the best.
    """

    error_median: float
    error_p90: float
    within_regret: float
    worst_regret: float
    worst_extreme_regret: float
    worst_adaptive_regret: float


@dataclass(frozen=True, slots=True)
class Result:
    """The whole comparison."""

    model: str
    artifact_id: str
    machine: Mapping[str, object]
    requests: int
    warm_up: int
    floor: float
    pictures: Mapping[str, int]
    are_files: bool
    cells: tuple[Cell, ...]
    throughput: tuple[Throughput, ...]
    summary: Summary
    notes: tuple[str, ...] = field(default=())
