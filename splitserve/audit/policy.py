"""From figures to a level, by thresholds that the auditor may change; the reasons come along.

The strongest attack counts, and the upper end of its interval. "Safe" and "anonymous" are no
levels. The default thresholds are our own proposal for natural pictures (docs/audit.md).
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from splitserve.audit.document import Attempt, Baselines, Probe
from splitserve.errors import UsageError

LEVELS = {
    5: "exposed",
    4: "high",
    3: "moderate",
    2: "low",
    1: "not shown to leak under the stated budget",
}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Rule(_Part):
    """A level is reached when any figure reaches its threshold; one that is left out never does."""

    identified: float | None = Field(default=None, gt=0, le=1)
    """Share of pictures that are identified."""
    ssim: float | None = Field(default=None, gt=0, le=1)
    psnr: float | None = Field(default=None, gt=0)
    """dB."""


class Policy(_Part):
    """Thresholds for levels 5 to 3; 2 is identification above chance."""

    name: str = "default/1"
    exposed: Rule = Rule(identified=0.9, ssim=0.6, psnr=20.0)
    high: Rule = Rule(identified=0.5, ssim=0.3)
    moderate: Rule = Rule(identified=0.1)
    probe_bits: float = Field(default=0.1, gt=0)
    """Level 2 when the features say so much more about a declared attribute than the answers."""


def read_policy(path: Path | None) -> Policy:
    """Read a policy file (TOML), or take the default.

    Raises:
        UsageError: no such file, or not a policy.
    """
    if path is None:
        return Policy()
    try:
        return Policy.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: no TOML: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise UsageError(f"{path}: {where}: {first['msg']}") from error


@dataclass(frozen=True, slots=True)
class Beside:
    """What counts beside the attempts.

    Args:
        has_control: whether the same attacks were shown to work at a shallower cut in this run;
            without that the lowest level is 2.
        probe: of the declared attribute; None without one.
    """

    has_control: bool
    probe: Probe | None = None


def judge(
    attempts: Sequence[Attempt], baselines: Baselines, policy: Policy, beside: Beside
) -> tuple[int, tuple[str, ...]]:
    """Level of a cut and the reasons for it.

    Args:
        attempts: all attacks on it.
        baselines: of guessing.
        policy: thresholds.
        beside: the control and the probe.
    """
    if not attempts:
        return 2, ("no attack was run on this cut",)
    for level, rule in ((5, policy.exposed), (4, policy.high), (3, policy.moderate)):
        reasons = [reason for one in attempts for reason in _reached(one, rule, baselines)]
        if reasons:
            return level, tuple(reasons)
    above = [
        f"{one.attack}: {one.identified.value:.1%} identified, chance is"
        f" {baselines.chance_identified:.1%}"
        for one in attempts
        if one.identified.low > baselines.chance_identified
    ]
    probe = beside.probe
    if probe and probe.excess_bits > policy.probe_bits:
        above.append(f"{probe.excess_bits:.2f} bit more about {probe.attribute} than the answers")
    if above:
        return 2, tuple(above)
    if not beside.has_control:
        return 2, ("no control: these attacks were not shown to work anywhere in this run",)
    if not any(one.has_converged for one in attempts):
        return 2, ("no attack converged",)
    return 1, ("no attack reached a threshold, and the same attacks worked at the control",)


def _reached(attempt: Attempt, rule: Rule, guess: Baselines) -> list[str]:
    """Thresholds that are reached; PSNR and SSIM count only where they say more than a guess."""
    shown, ssim, psnr = attempt.identified, attempt.ssim, attempt.psnr
    figures = (
        (shown.high, rule.identified, "{:.1%} identified", True),
        (ssim.high, rule.ssim, "SSIM {:.2f}", ssim.low > guess.mean_picture_ssim),
        (psnr.high, rule.psnr, "PSNR {:.1f} dB", psnr.low > guess.mean_picture_psnr),
    )
    name = attempt.attack if attempt.threat.adapts else f"{attempt.attack}, unaware of the defence"
    return [
        f"{name}: {text.format(high)} at the upper end, from {text.format(limit)} on"
        for high, limit, text, counts in figures
        if counts and limit is not None and high >= limit
    ]
