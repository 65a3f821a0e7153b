"""From what was asked for, such as `noise:0.01`, to a defence of one cut.

| asked | what is done to each tensor that crosses |
|---|---|
| `noise:M` | fresh Gaussian noise: an unbiased attacker's mean squared error stays over M |
| `noise:Xrms` | the same, X times as strong as the tensor's root mean square |
| `step:X` | rounded to multiples of X standard deviations |
| `step:Nbit` | rounded to N bits over the range that was seen |
| `channels:S` | the share S of the channels travels, those that the answer needs most |
| `withdrawn` | nothing may cross here |

Amounts are fitted at the model's own size, as the device will run it. The floor of `noise:M` is
that of dFIL on some pictures, at the upper end of its mean's interval.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from splitserve.artifact import Artifact, Defence, Noise, Rounding, Subset, Withdrawn
from splitserve.audit.fisher import estimate_trace, flat_head, noise_for
from splitserve.audit.subject import Floats, Subject
from splitserve.calibrate.fit import channel_axis
from splitserve.errors import UsageError
from splitserve.runtime import Chain
from splitserve.tensors import TensorSpec

NONE, OWN = "none", "own"
PATTERN = re.compile(r"(noise|step|channels):(\d+(?:\.\d+)?(?:e-?\d+)?)(rms|bit)?")
UNITS = {"noise": ("", "rms"), "step": ("", "bit"), "channels": ("",)}
FIX = "one of none, noise:0.01, noise:0.5rms, step:0.5, step:4bit, channels:0.5, withdrawn"
TRACED, PROBES = 32, 16
RANKED = 16
MOST_BITS = 16
LARGEST = 1e6

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Asked:
    """A defence as somebody asks for it.

    Args:
        text: as it was written.
        kind: noise, step, channels or withdrawn.
        amount: in the unit.
        unit: of the amount; empty for the kind's own.
    """

    text: str
    kind: str
    amount: float = 0.0
    unit: str = ""


def parse_defence(text: str) -> Asked | None:
    """Read a defence; None for `none` and for `own`, which is what the artifact holds.

    Raises:
        UsageError: not a defence.
    """
    if text in (NONE, OWN):
        return None
    if text == "withdrawn":
        return Asked(text, text)
    match = PATTERN.fullmatch(text)
    unit = (match[3] or "") if match else ""
    if not match or unit not in UNITS[match[1]] or float(match[2]) <= 0:
        raise UsageError(f"no defence {text!r}; there is {FIX}")
    kind, amount = match[1], float(match[2])
    if not amount <= LARGEST:
        raise UsageError(f"{text}: more than {LARGEST:g}")
    if kind == "channels" and amount >= 1:
        raise UsageError(f"{text}: keeps every channel; a share lies between 0 and 1")
    if unit == "bit" and (amount != int(amount) or amount > MOST_BITS):
        raise UsageError(f"{text}: 1 to {MOST_BITS} whole bits")
    return Asked(text, kind, amount, unit)


def fit_defence(
    asked: Asked | None,
    artifact: Artifact,
    position: int,
    pictures: Floats,
    chain: Chain,
    seed: int = 0,
) -> Defence | None:
    """Fit a defence to a cut.

    Args:
        asked: what is wanted; None for no defence.
        artifact: verified.
        position: of the cut.
        pictures: some, (n, 3, height, width), 0 to 1, at the model's own size.
        chain: the loaded artifact, for ranking channels.
        seed: of the Fisher information's probes.

    Raises:
        UsageError: a cut that this defence does not fit.
    """
    if asked is None:
        return None
    if asked.kind == "withdrawn":
        return Withdrawn()
    specs = artifact.manifest.egress(position)
    other = [spec.name for spec in specs if not spec.dtype.startswith("float")]
    if other:
        raise UsageError(f"{asked.text}: {other[0]} at this cut is no floating-point tensor")
    subject = Subject(artifact, position)
    features = subject.collect(pictures)
    if asked.kind == "noise":
        noise = _noise(asked, subject, features, pictures, seed)
        _refuse_vanishing(asked, specs, noise.deviations)
        return noise
    if asked.kind == "step":
        steps = tuple(_step(asked, one) for one in features)
        _refuse_vanishing(asked, specs, steps)
        return Rounding(asked=asked.text, steps=steps)
    if subject.preprocess.layout != "NCHW":
        raise UsageError(f"{asked.text}: which axis holds channels is known of NCHW models only")
    axes = tuple(_channel_axis(spec) for spec in specs)
    costs = _costs(chain, position, specs, features, axes)
    return _subset(asked, features, axes, costs)


def _noise(
    asked: Asked, subject: Subject, features: Sequence[Floats], pictures: Floats, seed: int
) -> Noise:
    strength = [max(float(np.sqrt(np.square(one).mean())), 1e-9) for one in features]
    factor = asked.amount
    if not asked.unit:
        head = flat_head(subject, subject.egress, strength)
        trace = estimate_trace(head, pictures[:TRACED], PROBES, seed)
        factor = noise_for(trace.high, asked.amount)
    return Noise(asked=asked.text, deviations=tuple(factor * one for one in strength))


def _step(asked: Asked, features: Floats) -> float:
    spread = float(features.std())
    if asked.unit == "bit":
        spread, amount = float(np.ptp(features)), 1 / (2**asked.amount - 1)
    else:
        amount = asked.amount
    return max(amount * spread, 1e-9)


def _refuse_vanishing(asked: Asked, specs: Sequence[TensorSpec], amounts: Sequence[float]) -> None:
    """Refuse amounts that are nothing in the tensor's own type, or more than it holds."""
    for spec, amount in zip(specs, amounts, strict=True):
        if not 0 < float(np.asarray(amount, spec.dtype)) < np.inf:
            raise UsageError(
                f"{asked.text}: {amount:.3g} is no amount for {spec.dtype} {spec.name}"
            )


def _channel_axis(spec: TensorSpec) -> int:
    axis = channel_axis(spec, channels_last=False)
    if not axis:
        raise UsageError(f"{spec.name} has no channels to leave out")
    return axis


def _means(features: Floats, axis: int) -> Floats:
    """Of every channel."""
    return np.asarray(np.moveaxis(features, axis, 0).reshape(features.shape[axis], -1).mean(axis=1))


def _costs(
    chain: Chain,
    position: int,
    specs: Sequence[TensorSpec],
    features: Sequence[Floats],
    axes: Sequence[int],
) -> list[Doubles]:
    """What the answer changes by when a channel is replaced by its mean, channel by channel."""
    count, end = min(RANKED, len(features[0])), len(chain)
    some = [one[:count] for one in features]

    def answers(tensors: Sequence[Floats]) -> list[Doubles]:
        rows = []
        for index in range(count):
            parts = [tensor[index : index + 1] for tensor in tensors]
            known = {spec.name: part for spec, part in zip(specs, parts, strict=True)}
            found = chain.run(known, position, end)
            rows.append(np.concatenate([v.astype(np.float64).ravel() for v in found.values()]))
        return rows

    before, costs = answers(some), []
    for number, (axis, all_of) in enumerate(zip(axes, features, strict=True)):
        means = _means(all_of, axis)
        cost = np.zeros(len(means))
        for channel, mean in enumerate(means):
            changed = list(some)
            changed[number] = some[number].copy()
            np.moveaxis(changed[number], axis, 0)[channel] = mean
            after = answers(changed)
            cost[channel] = sum(
                float(np.square(a - b).mean()) for a, b in zip(after, before, strict=True)
            )
        costs.append(cost)
    return costs


def _subset(
    asked: Asked, features: Sequence[Floats], axes: Sequence[int], costs: Sequence[Doubles]
) -> Subset:
    constants = []
    for axis, one, cost in zip(axes, features, costs, strict=True):
        means = _means(one, axis)
        kept = max(1, math.ceil(asked.amount * len(cost)))
        order = np.argsort(-cost, kind="stable")
        dropped = set(order[kept:].tolist())
        constants.append(
            tuple(float(mean) if c in dropped else None for c, mean in enumerate(means))
        )
    return Subset(asked=asked.text, axes=tuple(axes), constants=tuple(constants))
