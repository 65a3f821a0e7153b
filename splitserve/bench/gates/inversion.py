"""Gates B, C and D: white-box optimisation, auxiliary pictures, and the data-free inverse."""

import resource
import time
from collections.abc import Sequence

from splitserve.audit.attacks import ATTACKS, Loot
from splitserve.audit.attacks import data_free as data_free_attack
from splitserve.audit.budget import Budget
from splitserve.audit.document import Attempt, Figure
from splitserve.audit.images import procedural
from splitserve.audit.inverse import Inverse, Recipe, train_inverse
from splitserve.audit.laboratory import Laboratory, Material
from splitserve.audit.policy import Policy
from splitserve.audit.run import Judge
from splitserve.audit.score import figure, score
from splitserve.bench.fixture import prepared
from splitserve.bench.gates.gate import Gate
from splitserve.bench.gates.network import CUTS, TUNED, Bench, Tick, laboratory_of

SHORT, LONG = 360, 1200
DEPTHWISE_SIZE, DEPTHWISE_PICTURES = (64, 64), 16
Attempts = dict[str, Attempt]


def attempts_of(lab: Laboratory, loot: Sequence[Loot]) -> Attempts:
    """Figures by stage, of attackers who know the defence."""
    judge = Judge(lab.plain or lab, Policy())
    stages = {cut: stage for stage, cut in CUTS.items()}
    return {
        stages[one.cut]: judge.attempt(one)
        for one in loot
        if one.cut in stages and one.threat.adapts
    }


def attack(name: str, lab: Laboratory, tick: Tick) -> Attempts:
    """Run one attack."""
    return attempts_of(lab, ATTACKS[name](lab, tick))


def db(value: Figure) -> str:
    """PSNR with its interval."""
    return f"{value.mean:.1f} [{value.low:.1f}, {value.high:.1f}] dB"


def psnr_gate(number: str, what: str, one: Attempt, least: float) -> Gate:
    """PSNR's lower end."""
    return Gate(number, f"{what}, PSNR", db(one.psnr), one.psnr.low, least)


def ssim_gate(number: str, what: str, one: Attempt, least: float) -> Gate:
    """SSIM's lower end."""
    ssim = one.ssim
    text = f"{ssim.mean:.3f} [{ssim.low:.3f}, {ssim.high:.3f}]"
    return Gate(number, f"{what}, SSIM", text, ssim.low, least)


def identified_gate(number: str, what: str, one: Attempt, least: float) -> Gate:
    """Identification's lower end, in percent."""
    share = one.identified
    text = f"{100 * share.value:.1f} % [{100 * share.low:.1f}, {100 * share.high:.1f}]"
    return Gate(number, f"{what}, identified", text, 100 * share.low, least)


def optimisation(bench: Bench, tick: Tick) -> list[Gate]:
    """B1 and B2."""
    gates = []
    for number, stage, steps, psnr, ssim in (
        ("B1", "stem", 1500, 45, 0.99),
        ("B2", "layer1", 1500, 33, 0.93),
    ):
        lab = bench.laboratory(SHORT, [stage], steps)
        one = attack("optimise", lab, tick)[stage]
        what = f"optimisation, {stage}, {one.pictures} pictures, {steps} steps"
        gates += [psnr_gate(number, what, one, psnr), ssim_gate(number, what, one, ssim)]
    return gates


def auxiliary(bench: Bench, tick: Tick) -> list[Gate]:
    """C2."""
    gates = []
    for steps, limits in (
        (SHORT, {"layer1": 24.5, "layer2": 20.5, "layer3": 14.5}),
        (LONG, {"layer1": 26.5, "layer2": 22.0, "layer3": 15.5}),
    ):
        seen = attack("auxiliary", bench.laboratory(steps), tick)
        gates += [
            psnr_gate("C2", f"auxiliary, {stage}, {steps} steps", seen[stage], least)
            for stage, least in limits.items()
        ]
    return gates


def data_free(bench: Bench, tick: Tick) -> list[Gate]:
    """D1 to D4, D6."""
    lab = bench.laboratory(SHORT)
    _ = lab.made, lab.borders  # the pictures cost time too, but belong to no attack
    began = time.process_time()
    short = attack("data-free", lab, tick)
    seconds = time.process_time() - began
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    noise = attack("noise", lab, tick)
    long = attack("data-free", bench.laboratory(LONG), tick)
    guess = Judge(lab, Policy()).baselines.mean_picture_psnr
    name = f"data-free, {{}}, {SHORT} steps"
    later = f"data-free, {{}}, {LONG} steps"
    return [
        psnr_gate("D1", name.format("layer1"), short["layer1"], 21.5),
        ssim_gate("D1", name.format("layer1"), short["layer1"], 0.86),
        psnr_gate("D2", name.format("layer2"), short["layer2"], 18.0),
        ssim_gate("D2", name.format("layer2"), short["layer2"], 0.69),
        identified_gate("D2", name.format("layer2"), short["layer2"], 95),
        identified_gate("D3", name.format("layer3"), short["layer3"], 55),
        psnr_gate("D3", f"{name.format('layer3')}, over the mean picture", short["layer3"], guess),
        *(
            _gain("D4", f"procedural over noise pictures, {stage}", short[stage], noise[stage], db)
            for stage, db in (("layer1", 4.0), ("layer2", 3.0))
        ),
        *(
            psnr_gate("D6", later.format(stage), long[stage], least)
            for stage, least in (("layer1", 22.5), ("layer2", 18.5), ("layer3", 13.3))
        ),
        identified_gate("D6", later.format("layer3"), long["layer3"], 68),
        Gate("D6", f"all four cuts at {SHORT} steps, CPU seconds, one thread", f"{seconds:.0f} s",
             seconds, 120, is_least=False),
        Gate("D6", "the process's memory", f"{megabytes:,.0f} MB", megabytes, 2048, is_least=False),
    ]  # fmt: skip


def _gain(number: str, what: str, one: Attempt, other: Attempt, least: float) -> Gate:
    """Gain of the means; its low end takes both intervals at their worst."""
    gain, low = one.psnr.mean - other.psnr.mean, one.psnr.low - other.psnr.high
    return Gate(number, what, f"{gain:+.1f} dB, at least {low:+.1f}", low, least)


def chain(bench: Bench, tick: Tick) -> list[Gate]:
    """D5: blocks and chains against blocks alone, at equal steps, paired by picture."""
    lab = bench.laboratory(SHORT)
    pairs, found = lab.pairs(lab.made), {}
    for share in (0.0, Recipe().chain_share):
        inverse = Inverse(lab.borders, (3, *lab.subject.size), bench.seed)
        recipe = Recipe(steps=SHORT, seed=bench.seed, chain_share=share)
        train_inverse(lab.subject, inverse, pairs, recipe, tick)
        for stage, target in zip(CUTS, lab.targets, strict=True):
            depth = lab.depth_of(target)
            if depth is not None:
                seen = inverse.invert(lab.received(target, lab.attacked)[0], depth)
                found[stage, share > 0] = score(seen, lab.attacked).psnr
    first, second = (
        figure(found[stage, True] - found[stage, False], bench.seed)
        for stage in ("layer1", "layer2")
    )
    text = f"{second.mean:+.2f} [{second.low:+.2f}, {second.high:+.2f}] dB"
    what = f"chains over blocks alone, layer2, {SHORT} steps (layer1 {first.mean:+.2f} dB)"
    return [Gate("D5", what, text, second.low, 0.5)]


def generality(bench: Bench, tick: Tick) -> list[Gate]:
    """D7: a depthwise network without batch norm, at a reduced size."""
    _, artifact = prepared(bench.build)
    pictures = procedural(DEPTHWISE_PICTURES + TUNED, *DEPTHWISE_SIZE, bench.seed)
    lab = laboratory_of(
        artifact,
        list(artifact.manifest.positions[1:-1]),
        Material(pictures, pictures[:0], pictures[:DEPTHWISE_PICTURES]),
        Budget("gates", DEPTHWISE_PICTURES, 300, 60, 1, 1, TUNED, 1, 1),
        bench.seed,
    )
    loot = data_free_attack(lab, tick)
    names = {target.name for target in lab.targets}
    count, known = len(names & {one.cut for one in loot}), len(names)
    closed = loot[0].settings["blocks not inverted"]
    what = f"cuts of EfficientNet-Lite0 attacked at 64 px, 60 steps; not inverted: {closed}"
    return [Gate("D7", what, f"{count} of {known}", count, known)]
