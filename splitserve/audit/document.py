"""The audit as data: what `audit.json` holds, and what the page is made from."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from splitserve.artifact import Defence
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
    error: Figure
    """Mean squared error, pixels being 0 to 1; the worst is the smallest."""
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
    """Fisher information of one observation over the number of pixels; None without noise."""
    least_error: float | None = None
    """Mean squared error below which no unbiased attacker comes on average over the pictures;
    None: no bound."""
    least_error_worst: float | None = None
    """The same of the picture with the most information."""
    least_error_prior: float | None = None
    """Estimate for an attacker who knows what pictures look like: a Gaussian prior of their
    variance."""
    reason: str


class Bits(_Part):
    """What a probe reads from some values about an attribute."""

    bits: float
    """Usable information: entropy of the attribute less the probe's held-out cross-entropy."""
    low: float
    """Of its 95 % bootstrap interval."""
    high: float
    balanced_accuracy: float = Field(ge=0, le=1)


class Probe(_Part):
    """A declared attribute, read by a linear probe, cross-validated."""

    attribute: str
    values: int = Field(ge=2)
    pictures: int = Field(ge=2)
    entropy_bits: float
    features: Bits
    answers: Bits
    """Of the model's own answer, which the service reveals anyway."""
    pixels: Bits
    shuffled: Bits
    """Of features with the attribute shuffled: the probe's own noise."""
    excess_bits: float
    """Features less answers, which count as nothing where the probe does worse than guessing."""


class Estimates(_Part):
    """Figures that need no attack. They guarantee nothing."""

    distance_correlation: float
    distance_p: float = Field(ge=0, le=1)
    """Chance of as much with shuffled pairs."""
    trace: float | None = Field(default=None, ge=0)
    """Of J'J over the number of pixels, mean of some pictures."""
    probe: Probe | None = None
    """What the features say about the declared attribute; None where nobody declared one."""


class CutAudit(_Part):
    """One cut behind one transport and one defence."""

    cut: str
    shape: tuple[int, ...]
    macs_share: float
    convolutions: int
    """And matrix products before the cut."""
    transport: str
    """For people."""
    codec: str
    """That the features travelled in; `none` for float32."""
    quality: float | None = None
    bytes_up: float = Field(ge=0)
    defence: Defence | None
    """What is done to the features before they are encoded."""
    agreement: Share
    """Answers that are the unsplit model's, through defence and transport, at its own size."""
    attempts: tuple[Attempt, ...]
    bound: Bound
    estimates: Estimates | None = None
    level: int = Field(ge=1, le=5)
    reasons: tuple[str, ...]

    @property
    def asked(self) -> str:
        """The defence for people."""
        return self.defence.asked if self.defence else "none"

    def unaware(self, attack: str) -> Attempt | None:
        """The same attack by somebody who does not know the defence; None where it was not run."""
        found = (one for one in self.attempts if one.attack == attack and not one.threat.adapts)
        return next(found, None)

    @property
    def strongest(self) -> Attempt | None:
        """The attack that identified most, with the best SSIM of these; None without any."""
        by = [(one.identified.value, one.ssim.mean) for one in self.attempts]
        return self.attempts[by.index(max(by))] if by else None

    @model_validator(mode="after")
    def _has_adapted(self) -> "CutAudit":
        """A defence is only reported with attackers who know it."""
        if self.defence is None or not self.attempts:
            return self
        adapted = {one.attack for one in self.attempts if one.threat.adapts}
        naive = {one.attack for one in self.attempts if not one.threat.adapts}
        if not adapted or naive - adapted:
            raise ValueError(f"{self.cut}: no attack was adapted to the defence {self.asked}")
        return self


class Baselines(_Part):
    """What a guess gives."""

    mean_picture_psnr: float
    mean_picture_ssim: float
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
    device: str
    """That the attacks were computed on."""
    tools: dict[str, str]
    expires: str
    """ISO date after which this says nothing any more."""
    command: str
    timing: dict[str, float] = Field(default_factory=dict)
    """Seconds. This and `expires` are all that differs between two equal runs."""


def read_audit(path: Path) -> Audit:
    """Read an audit.

    Raises:
        UsageError: no such file, or not one of ours; the message names the fix.
    """
    fix = f"splitserve audit-leakage ARTIFACT -o {path.parent}"
    return read_document(path, Audit, FILE_LIMIT_BYTES, fix)
