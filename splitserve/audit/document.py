"""The audit as data: what `audit.json` holds, and what the page is made from."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from splitserve.documents import read_document

FILE_LIMIT_BYTES = 64 * 1024 * 1024

Knowledge = Literal["weights", "architecture", "queries", "nothing"]
Data = Literal["none", "auxiliary", "same distribution"]


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class Figure(_Part):
    """A mean over the attacked pictures."""

    mean: float
    low: float
    """Of its 95 % bootstrap interval."""
    high: float
    p5: float
    median: float
    p95: float
    worst: float
    """The most that one picture gives away."""


class Share(_Part):
    """A share of the attacked pictures."""

    value: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    """Of its exact 95 % interval."""
    high: float = Field(ge=0, le=1)


class Threat(_Part):
    """Who attacks."""

    knowledge: Knowledge
    """Of the head."""
    data: Data
    observations: int = Field(default=1, ge=1)
    """Of each picture."""
    adapts: bool = True
    """Whether it was trained through the transport and the defence."""


class Attempt(_Part):
    """One attack on one cut."""

    attack: str
    threat: Threat
    settings: dict[str, float | int | str]
    """Steps, pictures, weights: all that a repetition needs besides the seed."""
    seed: int
    pictures: int = Field(ge=1)
    psnr: Figure
    ssim: Figure
    identified: Share
    """Nearest to their own original among `gallery`."""
    gallery: int = Field(ge=2)
    same_class: Share | None = None
    """Reconstructions to which the whole model gives the class of the original."""
    has_converged: bool
    evidence: dict[str, float | list[float] | list[list[float]]] = Field(default_factory=dict)
    """Losses and sweeps by which convergence was judged."""


class Bound(_Part):
    """What fresh noise guarantees."""

    dfil: float | None = None
    """Fisher information over the number of pixels; None without noise."""
    least_error: float | None = None
    """Mean squared error below which no unbiased attacker comes; None: no bound."""
    reason: str


class Estimates(_Part):
    """Figures that need no attack. They guarantee nothing."""

    distance_correlation: float
    distance_p: float = Field(ge=0, le=1)
    """Chance of as much with shuffled pairs."""
    trace: float | None = Field(default=None, ge=0)
    """Of J'J over the number of pixels, mean of some pictures."""


class Defence(_Part):
    """What is done to the features before they travel."""

    kind: Literal["none", "noise", "step", "channels"]
    amount: float = 0.0
    text: str = "none"


class CutAudit(_Part):
    """One cut behind one transport and one defence."""

    cut: str
    shape: tuple[int, ...]
    macs_share: float
    transport: str
    """For people."""
    codec: str
    """That the features travelled in; `none` for float32."""
    quality: float | None = None
    bytes_up: float = Field(ge=0)
    defence: Defence
    agreement: Share | None
    """Answers that are the unsplit model's, through transport and defence; None at a reduced
    size, at which the model was not made to answer."""
    attempts: tuple[Attempt, ...]
    bound: Bound
    estimates: Estimates | None = None
    level: int = Field(ge=1, le=5)
    reasons: tuple[str, ...]


class Baselines(_Part):
    """What a guess gives."""

    mean_picture_psnr: float
    chance_identified: float


class Audit(_Part):
    """A whole audit."""

    schema_version: Literal[1] = 1
    artifact_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    model: str
    model_sha256: str
    size: tuple[int, int]
    """Height and width that the head was run at."""
    is_reduced: bool
    """Whether that is less than the model's own."""
    budget: str
    pictures_sha256: str
    pictures: int = Field(ge=1)
    auxiliary: int = Field(ge=0)
    """Auxiliary pictures that the auditor supplied."""
    baselines: Baselines
    cuts: tuple[CutAudit, ...] = Field(min_length=1)
    control: str | None
    """Cut at which the attacks were shown to work; None without one."""
    policy: str
    limits: tuple[str, ...]
    seed: int
    threads: int = Field(ge=1)
    tools: dict[str, str]
    expires: str
    """ISO date after which this says nothing any more."""
    command: str
    timing: dict[str, float] = Field(default_factory=dict)
    """Seconds; the one part that differs between two equal runs."""


def read_audit(path: Path) -> Audit:
    """Read an audit.

    Raises:
        UsageError: no such file, or not one of ours; the message names the fix.
    """
    fix = f"splitserve audit-leakage ARTIFACT -o {path.parent}"
    return read_document(path, Audit, FILE_LIMIT_BYTES, fix)
