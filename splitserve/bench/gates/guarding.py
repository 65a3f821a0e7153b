"""Gates A4 and F: defences, and attackers who know them."""

from pydantic import ValidationError

from splitserve.audit.attacks import ATTACKS, Loot
from splitserve.audit.document import Attempt, CutAudit
from splitserve.audit.laboratory import Laboratory
from splitserve.audit.policy import Policy
from splitserve.audit.run import Judge
from splitserve.bench.gates.gate import Gate
from splitserve.bench.gates.inversion import SHORT, attack, db
from splitserve.bench.gates.network import Bench, Tick

FLOOR = "noise:0.01"
WEAK = "noise:1rms"
SEEN = 16
STAGE = "layer1"


def floor(bench: Bench, tick: Tick) -> list[Gate]:
    """A4, F1, F2 and F4: noise with a floor under the error, attacked in every way there is."""
    lab = bench.laboratory(SHORT, [STAGE])
    guarded = bench.defended(lab, FLOOR)
    loot: list[Loot] = []
    for name in ("data-free", "auxiliary", "queries", "optimise"):
        loot += ATTACKS[name](guarded, tick)
    (cut,) = Judge(lab, Policy()).find([guarded], loot).cuts
    least = cut.bound.least_error or 0.0
    best = min(cut.attempts, key=lambda one: one.error.mean)
    aware = [one for one in cut.attempts if one.threat.adapts]
    classes = [one.same_class for one in cut.attempts if one.same_class]
    kept = cut.agreement
    what = f"{FLOOR} at {STAGE}: least error of {len(cut.attempts)} attacks ({best.attack})"
    error = f"{best.error.mean:.4f} [{best.error.low:.4f}, {best.error.high:.4f}]"
    return [
        Gate("A4", f"{what}, high end, over the floor of dFIL", error, best.error.high, least),
        Gate("F1", "a report without an attacker who knows the defence is refused",
             "refused" if _is_refused(cut) else "written", float(_is_refused(cut)), 1),
        Gate("F2", f"{what}; answers kept: {kept.value:.0%} [{kept.low:.0%}, {kept.high:.0%}]",
             error, best.error.low, 0.01),
        Gate("F4", f"attacks with the share of reconstructions that get the original's answer,"
             f" most {max(one.value for one in classes):.0%}",
             f"{len(classes)} of {len(cut.attempts)}", len(classes), len(cut.attempts)),
        Gate("F1", "attacks by somebody who knows it beside those by somebody who does not",
             f"{len(aware)} and {len(cut.attempts) - len(aware)}", len(aware), 4),
    ]  # fmt: skip


def _is_refused(cut: CutAudit) -> bool:
    naive = tuple(one for one in cut.attempts if not one.threat.adapts)
    try:
        CutAudit.model_validate({**dict(cut), "attempts": naive})
    except ValidationError:
        return True
    return False


def bits(bench: Bench, tick: Tick) -> list[Gate]:
    """F2b: four bits protect nothing."""
    lab = bench.laboratory(SHORT, ["layer1", "layer2"])
    plain = attack("data-free", lab, tick)
    coarse = attack("data-free", bench.defended(lab, "step:4bit"), tick)
    return [
        Gate("F2b", f"4 bits, {stage}: {db(coarse[stage].psnr)} where {db(plain[stage].psnr)}",
             f"{coarse[stage].psnr.mean - plain[stage].psnr.mean:+.2f} dB",
             abs(coarse[stage].psnr.mean - plain[stage].psnr.mean), 0.5, is_least=False)
        for stage in ("layer1", "layer2")
    ]  # fmt: skip


def repetition(bench: Bench, tick: Tick) -> list[Gate]:
    """F3: who sees a picture's features often averages the noise away."""
    lab = bench.laboratory(SHORT, [STAGE])
    once, often = (_aware(bench.defended(lab, WEAK, count), tick) for count in (1, SEEN))
    gain = often.psnr.low - once.psnr.high
    what = f"{WEAK} at {STAGE}: seen {SEEN} times {db(often.psnr)}, once {db(once.psnr)}"
    return [Gate("F3", what, f"{often.psnr.mean - once.psnr.mean:+.1f} dB", gain, 0.0)]


def _aware(lab: Laboratory, tick: Tick) -> Attempt:
    return attack("data-free", lab, tick)[STAGE]
