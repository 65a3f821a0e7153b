"""`splitserve bench published`: our attacks on the network of a published study, row by row."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from pydantic_settings import SettingsConfigDict
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from splitserve.artifact import Artifact
from splitserve.audit.images import gaussian
from splitserve.audit.inverse import Border, Inverse, Pairs, Recipe, train_inverse
from splitserve.audit.metrics import Interval, bootstrap_mean
from splitserve.audit.optimise import WEIGHTS, Prey, optimise, sweep
from splitserve.audit.score import Scores, score
from splitserve.audit.shadow import ShadowRecipe, tail_of, train_shadow
from splitserve.audit.subject import Floats, Subject
from splitserve.bench.cifar import SIDE, Labels, read_pictures
from splitserve.bench.six_layer import CUTS, prepared
from splitserve.errors import UsageError
from splitserve.output import print_document
from splitserve.settings import Names, Settings

EXIT_MISSED = 3
FILE = "published.json"
TEN, FIFTY, SCORED = 1, 5, 200  # a class, a class, in all
NOISE_SEED = 1000
TUNED_SHARE = 3  # the weight is tuned with a third of the steps
Row = dict[str, Any]
Tick = Callable[[], None]


class Options(Settings):
    """Repeat the attacks of He, Zhang and Lee (ACSAC 2019) on their CIFAR-10 network.

    The network is trained once and kept; the figures of every attack are kept too, in
    published.json, so that one attack can be repeated alone. Exit status 3: a gate is missed.
    """

    model_config = SettingsConfigDict(
        cli_prog_name="splitserve bench published", env_prefix="SPLITSERVE_BENCH_PUBLISHED_"
    )

    test: Path
    """CIFAR-10 test pictures, .npz: images (n, 32, 32, 3) uint8 and labels (n,)."""
    train: Path
    """Training pictures, the same; the network's and the attacker's."""
    attack: Names = Field(default=["white-box", "auxiliary", "noise", "query-free"], min_length=1)
    """Attacks, comma-separated."""
    epochs: int = Field(default=15, ge=1)
    """Of the network's training."""
    optimise_steps: int = Field(default=400, ge=3)
    """Of an optimisation."""
    decoder_steps: int = Field(default=400, ge=10)
    """Of a decoder; three times as many at the first convolution."""
    shadow_steps: int = Field(default=600, ge=10)
    """Of a shadow head."""
    seed: int = 0
    """Of everything drawn."""
    threads: int = Field(default=1, ge=1, le=1024)
    """Threads to compute with."""
    build: Path = Path("build")
    """Folder that keeps network, artifact and figures."""
    as_json: bool = False
    """Print one JSON document."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A published figure, PSNR in dB and SSIM, and our gate.

    Args:
        psnr: published.
        ssim: published.
        least: PSNR that must be reached; None for no gate.
        least_ssim: SSIM likewise.
        most: PSNR that must not be passed: the study's attack fails here, and ours has no reason
            to succeed.
    """

    psnr: float
    ssim: float
    least: float | None = None
    least_ssim: float | None = None
    most: float | None = None


# He, Zhang, Lee, ACSAC 2019: rMLE, tables 4 and 8 (decoders), table 6 (query-free); gates are ours.
CLAIMS: dict[str, tuple[Claim, Claim, Claim]] = {
    "white-box": (
        Claim(37.59, 0.9960, 37, 0.99),
        Claim(19.47, 0.6940, 19, 0.65),
        Claim(13.38, 0.1625, 13),
    ),
    "auxiliary": (
        Claim(49.02, 0.9992, 45),
        Claim(19.36, 0.6802, 19.4, 0.68),
        Claim(13.95, 0.2196, 14, 0.22),
    ),
    "noise": (
        Claim(48.59, 0.9996),
        Claim(12.79, 0.2930, most=14),
        Claim(12.37, 0.0440),
    ),
    "query-free": (
        Claim(21.16, 0.9104, 19),
        Claim(12.74, 0.1752, most=14),
        Claim(11.09, 0.0419),
    ),
}
TITLES = {
    "white-box": "optimisation, white box",
    "auxiliary": "decoder, same distribution",
    "noise": "decoder, Gaussian-noise queries",
    "query-free": "shadow head, query-free",
}


@dataclass(frozen=True, slots=True)
class Data:
    """Pictures, (n, 3, 32, 32), 0 to 1, and what they are for.

    Args:
        own: the attacker's, and the network's training.
        classes: of these.
        few: for optimisation, five a class, class by class.
        tuning: for its weight, one a class, none of them among the few.
        many: for decoders.
    """

    own: Floats
    classes: Labels
    few: Floats
    tuning: Floats
    many: Floats


@dataclass(frozen=True, slots=True)
class Case:
    """One cut to attack."""

    artifact: Artifact
    cut: str
    data: Data
    options: Options
    tick: Tick

    @property
    def subject(self) -> Subject:
        """The head."""
        return Subject(self.artifact, self.artifact.manifest.position(self.cut))


def run(options: Options) -> int:
    """Train or load, attack, compare."""
    unknown = [name for name in options.attack if name not in ATTACKS]
    if unknown:
        raise UsageError(f"unknown attacks {', '.join(unknown)}; known: {', '.join(ATTACKS)}")
    torch.set_num_threads(options.threads)
    own, classes = read_pictures(options.train)
    test, labels = read_pictures(options.test)
    data = Data(own, classes, *_choose(test, labels))
    console = Console(stderr=True)
    with Progress(console=console, transient=True) as progress:
        place = (options.build / "published", options.epochs, options.seed)
        artifact, facts = prepared(place, (own, classes), (test, labels), progress)
        for name in options.attack:
            steps = len(CUTS) * _ticks(name, options)
            task = progress.add_task(TITLES[name], total=steps)
            rows = []
            for cut in CUTS:
                case = Case(artifact, cut, data, options, partial(progress.advance, task))
                rows += ATTACKS[name](case)
            document = _keep(options.build / FILE, facts, name, rows)
            progress.remove_task(task)
    _report(document, options)
    return EXIT_MISSED if any(row["is_met"] is False for row in document["rows"]) else 0


def _choose(test: Floats, labels: Labels) -> tuple[Floats, Floats, Floats]:
    by_class = [np.flatnonzero(labels == one) for one in np.unique(labels)]
    if min(len(rows) for rows in by_class) <= FIFTY or len(test) < SCORED:
        raise UsageError(f"{len(test)} test pictures; {SCORED} and {FIFTY + 1} a class are needed")
    few = np.concatenate([rows[:FIFTY] for rows in by_class])
    tuning = np.concatenate([rows[FIFTY : FIFTY + TEN] for rows in by_class])
    return test[few], test[tuning], test[:SCORED]


def white_box(case: Case) -> list[Row]:
    """Optimise pictures against the head; the weight is tuned on other pictures."""
    started = time.process_time()
    found, settings = _optimised(case, case.subject, case.data.few)
    cpu_s = time.process_time() - started
    ten = slice(0, len(found), FIFTY)  # each picture has its own gradient
    return [
        _row("white-box", case, score(found[ten], case.data.few[ten]), (cpu_s, settings)),
        _row("white-box", case, score(found, case.data.few), (cpu_s, settings)),
    ]


def _optimised(case: Case, head: Subject, pictures: Floats) -> tuple[Floats, Row]:
    """Attack the true head's features with what is taken for it."""
    true, steps = case.subject, case.options.optimise_steps
    tuning = case.data.tuning
    tuned = sweep(
        head,
        tuning,
        Prey(true.egress, head.collect(tuning)),  # who cannot ask the head tunes on his own
        lambda seen, picture: float(score(seen, picture).psnr.mean()),
        steps // TUNED_SHARE,
        case.tick,
    )
    weight = max(tuned, key=lambda one: one[1])[0]
    found = optimise(head, Prey(true.egress, true.collect(pictures)), weight, steps, case.tick)
    settings = {
        "steps": steps,
        "weight": weight,
        "sweep_psnr": [[one, round(value, 2)] for one, value in tuned],
        "distance": float(np.median(found.distance)),
    }
    return found.pictures, settings


def auxiliary(case: Case) -> list[Row]:
    """Learn a decoder from pictures of the same distribution."""
    return [_decoded("auxiliary", case, case.data.own)]


def noise(case: Case) -> list[Row]:
    """Learn a decoder from the answers to Gaussian noise."""
    asked = gaussian(len(case.data.own), SIDE, SIDE, NOISE_SEED + case.options.seed)
    return [_decoded("noise", case, asked)]


def _decoded(name: str, case: Case, asked: Floats) -> Row:
    started = time.process_time()
    subject, seed = case.subject, case.options.seed
    (features,) = subject.collect(asked)
    border = Border(case.cut, features.shape[1:], bool(features.min() >= 0))
    inverse = Inverse([border], (3, SIDE, SIDE), seed)
    recipe = Recipe(steps=_decoder_steps(case), seed=seed, cycle=0.0, chain_share=0.0)
    train_inverse(subject, inverse, Pairs(asked, [features], [features]), recipe, case.tick)
    found = inverse.invert(subject.collect(case.data.many)[0], 0)
    settings = {"steps": recipe.steps, "pictures": len(asked)}
    cpu_s = time.process_time() - started
    return _row(name, case, score(found, case.data.many), (cpu_s, settings))


def _decoder_steps(case: Case) -> int:
    """More at the first convolution, where the last decibels take long and a step is cheap."""
    return case.options.decoder_steps * (3 if case.cut == CUTS[0] else 1)


def query_free(case: Case) -> list[Row]:
    """Learn a head that the tail understands, and optimise pictures against it."""
    started, options = time.process_time(), case.options
    tail = tail_of(case.artifact, case.artifact.manifest.position(case.cut))
    recipe = ShadowRecipe(steps=options.shadow_steps, seed=options.seed)
    data = (case.data.own, case.data.classes)
    shadow = train_shadow(case.subject, tail, data, recipe, case.tick)
    ten = case.data.few[::FIFTY]
    found, settings = _optimised(case, shadow, ten)
    settings |= {"shadow_steps": recipe.steps, "shadow_accuracy": shadow.accuracy}
    return [_row("query-free", case, score(found, ten), (time.process_time() - started, settings))]


ATTACKS: dict[str, Callable[[Case], list[Row]]] = {
    "white-box": white_box,
    "auxiliary": auxiliary,
    "noise": noise,
    "query-free": query_free,
}


def _ticks(name: str, options: Options) -> int:
    """Ticks of an attack on one cut, on average."""
    optimised = options.optimise_steps + len(WEIGHTS) * (options.optimise_steps // TUNED_SHARE)
    decoded = options.decoder_steps * 5 // 3
    shadow = options.shadow_steps + optimised
    return {"white-box": optimised, "query-free": shadow}.get(name, decoded)


def _row(name: str, case: Case, scores: Scores, costs: tuple[float, Mapping[str, Any]]) -> Row:
    cpu_s, settings = costs
    mean, similar = (bootstrap_mean(part.tolist()) for part in (scores.psnr, scores.ssim))
    return {
        "attack": name,
        "cut": case.cut,
        "pictures": len(scores.psnr),
        "psnr": mean.value,
        "psnr_interval": [mean.low, mean.high],
        "ssim": similar.value,
        "ssim_interval": [similar.low, similar.high],
        "cpu_s": round(cpu_s, 1),
        "settings": dict(settings),
    } | _judged(CLAIMS[name][CUTS.index(case.cut)], mean, similar, len(scores.psnr))


def _judged(claim: Claim, mean: Interval, similar: Interval, pictures: int) -> Row:
    """Hold figures against a claim: the unlucky end of the interval, the mean of few pictures."""
    is_many = pictures >= SCORED
    psnr, ssim = (one.low if is_many else one.value for one in (mean, similar))
    highest = mean.high if is_many else mean.value
    gates = [
        (f">= {claim.least:g} dB" if claim.least else "", psnr >= (claim.least or 0)),
        (f">= {claim.least_ssim:g}" if claim.least_ssim else "", ssim >= (claim.least_ssim or 0)),
        (f"<= {claim.most:g} dB" if claim.most else "", highest <= (claim.most or 0)),
    ]
    asked = [(text, is_met) for text, is_met in gates if text]
    return {
        "published_psnr": claim.psnr,
        "published_ssim": claim.ssim,
        "reaches_published": mean.value >= claim.psnr and similar.value >= claim.ssim,
        "gate": ", ".join(text for text, _ in asked),
        "is_met": all(is_met for _, is_met in asked) if asked else None,
    }


def _keep(path: Path, facts: Row, name: str, rows: list[Row]) -> Row:
    """Put an attack's rows beside those of the others on the same artifact, and write the file."""
    kept: list[Row] = []
    if path.is_file():
        known = json.loads(path.read_text())
        if known["network"] == facts:
            kept = [row for row in known["rows"] if row["attack"] != name]
    order = list(CLAIMS)
    rows = sorted([*kept, *rows], key=lambda row: order.index(row["attack"]))
    document = {"network": facts, "rows": rows}
    path.write_text(json.dumps(document, indent=1) + "\n")
    return document


def _report(document: Row, options: Options) -> None:
    if options.as_json:
        print_document(document)
        return
    facts, console = document["network"], Console()
    console.print(
        f"network of {facts['epochs']} epochs on {facts['pictures']} pictures:"
        f" {facts['test_accuracy']:.1%} of the test pictures right",
        highlight=False,
    )
    for name in dict.fromkeys(row["attack"] for row in document["rows"]):
        table = Table(title=TITLES[name], box=SIMPLE_HEAD, title_justify="left")
        for heading in ("cut", "pictures", "published", "ours", "reached", "gate", "", "CPU s"):
            table.add_column(heading, justify="left" if heading == "cut" else "right")
        for row in document["rows"]:
            if row["attack"] == name:
                table.add_row(*_cells(row))
        console.print(table)
    Console(stderr=True).print(f"{options.build / FILE} keeps all figures", highlight=False)


def _cells(row: Row) -> list[str]:
    return [
        row["cut"],
        str(row["pictures"]),
        *(f"{row[f'{who}psnr']:.2f} {row[f'{who}ssim']:.4f}" for who in ("published_", "")),
        "yes" if row["reaches_published"] else "no",
        row["gate"],
        {True: "met", False: "[red]missed[/red]", None: ""}[row["is_met"]],
        f"{row['cpu_s']:.0f}",
    ]
