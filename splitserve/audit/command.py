"""`splitserve audit-leakage`: attack the features of a cut, and give a verdict with reasons."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from splitserve.artifact import Artifact, Leakage, load_artifact, rewrite_manifest
from splitserve.audit.attacks import ATTACKS, Loot, can_shadow, steps_of
from splitserve.audit.budget import BUDGETS
from splitserve.audit.defences import OWN, fit_defence, parse_defence
from splitserve.audit.device import choose_device
from splitserve.audit.document import Audit, CutAudit
from splitserve.audit.laboratory import Laboratory, named_cuts, target_of
from splitserve.audit.material import Folders, read_material
from splitserve.audit.policy import read_policy
from splitserve.audit.report import show, write_report
from splitserve.audit.run import Judge, attack_all
from splitserve.audit.subject import transport_of
from splitserve.audit.work import WorkFolder
from splitserve.errors import UsageError
from splitserve.output import print_document
from splitserve.profile.machine import tool_versions
from splitserve.runtime import RuntimeOptions, open_chain
from splitserve.settings import Names, Settings

EXIT_ABOVE = 3
VALID_DAYS = 365
SIZE_LEAST = 16
DEFAULT_ATTACKS = ("data-free", "auxiliary", "queries", "shadow", "optimise")
LIMITS = (
    "no large generative prior was tried",
    "perceptual similarity (LPIPS) was not computed: no package brings its weights",
    "membership in the training set is not audited",
)


class Options(Settings):
    """Attack an artifact's cuts as the receiver of their features could, and judge what was seen.

    The attacks see the features through the configured codec, never the raw tensors. Exit status
    3 says that a verdict is above --max-level.
    """

    model_config = SettingsConfigDict(
        cli_prog_name="splitserve audit-leakage",
        env_prefix="SPLITSERVE_AUDIT_",
        cli_shortcuts={"as-json": "json", "output": "o"},
    )

    artifact: CliPositionalArg[Path]
    """Artifact folder."""
    images: Path
    """Folder of pictures to attack, like those the device sees."""
    cut: Names = Field(default=["all"])
    """Cuts to audit, comma-separated, or `all`."""
    auxiliary: Path | None = None
    """Folder of other pictures that an attacker may have; with labels.csv (file, label) he knows
    their classes, which `shadow` needs."""
    attack: Names = Field(default=list(DEFAULT_ATTACKS))
    """Attacks, comma-separated: data-free, noise, auxiliary, queries, shadow, optimise."""
    budget: Literal["quick", "standard", "thorough"] = "standard"
    """What an attacker may spend."""
    defence: Names = Field(default=[OWN])
    """What is done to the features before they are encoded, comma-separated; each is attacked by
    itself: own (what the artifact holds, see `splitserve defend`), none, noise:0.01 (a floor under
    the mean squared error), noise:0.5rms, step:0.5 (standard deviations), step:4bit, channels:0.5
    (share that is kept), withdrawn."""
    observations: int = Field(default=1, ge=1, le=1000)
    """How often the receiver sees the features of one picture, each time with fresh noise."""
    attribute: Path | None = None
    """CSV file with the columns file and one more: an attribute that the features ought not to
    tell. A probe is trained to read it."""
    codec: str = "step-ans"
    """What the features travel in; `none` for the features as they are."""
    quality: float | None = None
    """Of the codec: for step-ans the agreement in percent."""
    size: int | None = Field(default=None, ge=SIZE_LEAST)
    """Run the head at this many pixels a side, less than the model's own: faster, and another
    question; the report says so."""
    policy: Path | None = None
    """TOML file of thresholds; by default our own."""
    max_level: int = Field(default=5, ge=1, le=5)
    """Highest level that passes."""
    blur: bool = False
    """Blur the pictures in the report."""
    write: bool = False
    """Write the levels into the artifact's manifest, for the planner's --leakage-ceiling. The
    artifact gets a new id: profile and plan after that. Only for --defence own."""
    seed: int = 0
    """Of everything drawn."""
    device: str = "auto"
    """What the attacks compute on: auto (a GPU when there is one), cpu, cuda."""
    threads: int = Field(default=0, ge=0, le=1024)
    """Threads of the attacks; 0 means the cores there are."""
    output: Path = Path("audit")
    """Folder for audit.json and audit.html."""
    as_json: bool = False
    """Print the audit as one JSON document."""


def run(options: Options) -> int:
    """Attack, judge and report."""
    device = choose_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    console = Console(stderr=True)
    artifact = load_artifact(options.artifact)
    policy, names = read_policy(options.policy), _attacks(options)
    if options.write and list(options.defence) != [OWN]:
        raise UsageError("--write notes what the artifact does itself: first splitserve defend")
    started = datetime.now(UTC)
    lab, labs, digests = _laboratories(
        options, artifact, named_cuts(artifact.manifest, options.cut)
    )
    names = _possible(options, names, lab)
    work = WorkFolder(options.output / "work", _facts(options, artifact, (*digests, device)))
    loot = _attack(labs, names, work, console)
    with console.status("scoring"):
        findings = Judge(lab, policy).find(labs, loot)
    preprocess = artifact.manifest.preprocess
    audit = Audit(
        artifact_id=artifact.id.hex(),
        model=artifact.manifest.model.name,
        model_sha256=artifact.manifest.model.sha256,
        size=lab.subject.size,
        is_reduced=preprocess is not None and lab.subject.size != tuple(preprocess.crop),
        budget=options.budget,
        pictures_sha256=digests[0],
        pictures=len(lab.pictures),
        auxiliary=len(lab.auxiliary),
        baselines=findings.baselines,
        cuts=findings.cuts,
        control=findings.control,
        policy=policy.name,
        limits=_limits(options, names),
        seed=options.seed,
        threads=torch.get_num_threads(),
        device=device,
        tools={**tool_versions(), "torch": torch.__version__},
        expires=(started + timedelta(days=VALID_DAYS)).date().isoformat(),
        command=_command(options),
        timing={"seconds": (datetime.now(UTC) - started).total_seconds()},
    )
    options.output.mkdir(parents=True, exist_ok=True)
    text = audit.model_dump_json(indent=1) + "\n"
    (options.output / "audit.json").write_text(text)
    if options.write:
        write_levels(artifact, audit, text)
    page = options.output / "audit.html"
    write_report(audit, lab.attacked, findings.loot, page, is_blurred=options.blur)
    work.clear()
    if options.as_json:
        print_document(audit.model_dump(mode="json"))
    else:
        show(audit, Console(), page)
    return EXIT_ABOVE if max(cut.level for cut in audit.cuts) > options.max_level else 0


def write_levels(artifact: Artifact, audit: Audit, text: str) -> Artifact:
    """Put the audited cuts' levels into the manifest; the other cuts keep theirs.

    Args:
        artifact: that was audited.
        audit: what was found.
        text: of the document, for its hash.
    """
    found = {cut.cut: _leakage(cut, audit, text) for cut in audit.cuts}
    cuts = [
        cut.model_copy(update={"leakage": found[cut.name]}) if cut.name in found else cut
        for cut in artifact.manifest.cuts
    ]
    changed = artifact.manifest.model_copy(update={"cuts": tuple(cuts)})
    return rewrite_manifest(artifact, changed)


def _leakage(cut: CutAudit, audit: Audit, text: str) -> Leakage:
    return Leakage(
        level=cut.level,
        codec=cut.codec,
        quality=cut.quality,
        identified=100 * max((one.identified.value for one in cut.attempts), default=0.0),
        policy=audit.policy,
        budget=audit.budget,
        audit_sha256=hashlib.sha256(text.encode()).hexdigest(),
        expires=audit.expires,
    )


def _attacks(options: Options) -> list[str]:
    for name in options.attack:
        if name not in ATTACKS:
            raise UsageError(f"--attack: no attack {name!r}; there are: {', '.join(ATTACKS)}")
    return list(options.attack)


def _possible(options: Options, names: Sequence[str], lab: Laboratory) -> list[str]:
    """The attacks for which there is what they need; those asked for by name must have it."""
    needs = {
        "auxiliary": (len(lab.auxiliary) > 0, "pictures of its own: --auxiliary DIR"),
        "shadow": (
            can_shadow(lab),
            "labels.csv in the folder of --auxiliary, and the model's own size",
        ),
    }
    lacking = [name for name in names if not needs.get(name, (True,))[0]]
    if lacking and options.attack != list(DEFAULT_ATTACKS):
        raise UsageError(f"--attack {lacking[0]} needs {needs[lacking[0]][1]}")
    return [name for name in names if name not in lacking]


def _attack(
    labs: Sequence[Laboratory], names: Sequence[str], work: WorkFolder, console: Console
) -> list[Loot]:
    """Run what no earlier run has finished; keep each attack as soon as it is done."""
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    everything = []
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        bars = {name: progress.add_task(name, total=steps_of(name, labs)) for name in names}
        for name in names:
            loot = work.load(name)
            if loot is None:
                loot = attack_all(labs, [name], lambda which: progress.advance(bars[which]))
                work.keep(name, loot)
            progress.update(bars[name], completed=steps_of(name, labs))
            everything += loot
    return everything


def _laboratories(
    options: Options, artifact: Artifact, cuts: Sequence[str]
) -> tuple[Laboratory, list[Laboratory], tuple[str, str]]:
    """The laboratory without defences, one for each defence, and what names the pictures."""
    manifest, budget = artifact.manifest, BUDGETS[options.budget]
    crop = manifest.preprocess.crop if manifest.preprocess else (0, 0)
    size = (options.size, options.size) if options.size else crop
    if any(side > most for side, most in zip(size, crop, strict=True)):
        raise UsageError(f"--size {options.size}: the model's own size is {crop[0]} x {crop[1]}")
    asked = {text: parse_defence(text) for text in options.defence}
    positions = sorted({manifest.position(name) for name in cuts})
    targets = []
    for position in positions:
        transport = transport_of(artifact, position, options.codec, options.quality)
        seen = replace(transport, observations=options.observations, seed=options.seed)
        targets.append(target_of(artifact, position, seen))
    folders = Folders(options.images, options.auxiliary, options.attribute)
    material, *digests = read_material(folders, manifest, size, budget, options.seed)
    plain = Laboratory(artifact, targets, material, budget, options.seed)
    own = [manifest.defence(position) for position in positions]
    chain = open_chain(artifact, RuntimeOptions())
    labs: list[Laboratory] = []
    for text in options.defence:
        fitted = own
        if text != OWN:
            fitted = [
                fit_defence(asked[text], artifact, position, material.whole, chain, options.seed)
                for position in positions
            ]
        lab = plain.behind(fitted)
        lab.leave_out(labs)
        labs.append(lab)
    return plain, labs, (digests[0], digests[1])


def _limits(options: Options, names: Sequence[str]) -> tuple[str, ...]:
    """What this audit did not look at."""
    missing = [name for name in DEFAULT_ATTACKS if name not in names]
    repeated = "one observation of each picture: repeated requests are not averaged"
    attribute = "no attribute was declared, so none was probed"
    return (
        *LIMITS,
        *([f"attacks that were not run: {', '.join(missing)}"] if missing else []),
        *([repeated] if options.observations == 1 else []),
        *([attribute] if options.attribute is None else []),
    )


def _facts(options: Options, artifact: Artifact, where: tuple[str, str, str]) -> dict[str, object]:
    """What decides the results of an attack, so that an interrupted audit goes on with its own."""
    return {
        "artifact": artifact.id.hex(),
        "pictures, auxiliary, device": where,
        "threads": torch.get_num_threads(),
        "budget": options.budget,
        "codec": [options.codec, options.quality],
        "defence": options.defence,
        "observations": options.observations,
        "cuts": options.cut,
        "size": options.size,
        "seed": options.seed,
        "tools": {**tool_versions(), "torch": torch.__version__},
    }


def _command(options: Options) -> str:
    words = [
        f"splitserve audit-leakage ARTIFACT --cut {','.join(options.cut)} --images DIR",
        f"--attack {','.join(options.attack)} --budget {options.budget} --codec {options.codec}",
        f"--seed {options.seed}",
    ]
    words += [f"--quality {options.quality:g}"] if options.quality is not None else []
    words += [f"--size {options.size}"] if options.size else []
    words += ["--auxiliary DIR"] if options.auxiliary else []
    words += [f"--defence {','.join(options.defence)}"] if list(options.defence) != [OWN] else []
    words += [f"--observations {options.observations}"] if options.observations > 1 else []
    words += ["--attribute FILE"] if options.attribute else []
    return " ".join(words)
