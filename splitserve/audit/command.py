"""`splitserve audit-leakage`: attack the features of a cut, and give a verdict with reasons."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from splitserve.artifact import Artifact, Leakage, Manifest, load_artifact, write_artifact
from splitserve.audit.attacks import ATTACKS, Loot, steps_of
from splitserve.audit.budget import BUDGETS
from splitserve.audit.document import Audit, CutAudit
from splitserve.audit.laboratory import Laboratory, Target
from splitserve.audit.policy import read_policy
from splitserve.audit.report import show, write_report
from splitserve.audit.run import attack_all, find
from splitserve.audit.subject import Floats, transport_of
from splitserve.audit.work import WorkFolder
from splitserve.errors import UsageError
from splitserve.output import print_document
from splitserve.picture import decode_picture, list_pictures
from splitserve.profile.machine import tool_versions
from splitserve.settings import Names, Settings

EXIT_ABOVE = 3
VALID_DAYS = 365
SIZE_LEAST = 16
DEFAULT_ATTACKS = ("data-free", "auxiliary", "queries", "optimise")
LIMITS = (
    "no large generative prior was tried",
    "one observation of each picture: repeated queries are not averaged",
    "attribute inference and membership are not audited",
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
    """Folder of other pictures that an attacker may have."""
    attack: Names = Field(default=list(DEFAULT_ATTACKS))
    """Attacks, comma-separated: data-free, noise, auxiliary, queries, optimise."""
    budget: Literal["quick", "standard", "thorough"] = "standard"
    """What an attacker may spend."""
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
    artifact gets a new id: profile and plan after that."""
    seed: int = 0
    """Of everything drawn."""
    threads: int = Field(default=0, ge=0, le=1024)
    """Threads of the attacks; 0 means the cores there are."""
    output: Path = Path("audit")
    """Folder for audit.json and audit.html."""
    as_json: bool = False
    """Print the audit as one JSON document."""


def run(options: Options) -> int:
    """Attack, judge and report."""
    if options.threads:
        torch.set_num_threads(options.threads)
    console = Console(stderr=True)
    artifact = load_artifact(options.artifact)
    policy, names = read_policy(options.policy), _attacks(options)
    started = datetime.now(UTC)
    lab, digest = _laboratory(options, artifact)
    work = WorkFolder(options.output / "work", _facts(options, artifact, digest))
    loot = _attack(lab, names, work, console)
    with console.status("scoring"):
        findings = find(lab, loot, policy)
    preprocess = artifact.manifest.preprocess
    audit = Audit(
        artifact_id=artifact.id.hex(),
        model=artifact.manifest.model.name,
        model_sha256=artifact.manifest.model.sha256,
        size=lab.subject.size,
        is_reduced=preprocess is not None and lab.subject.size != tuple(preprocess.crop),
        budget=options.budget,
        pictures_sha256=digest,
        pictures=len(lab.pictures),
        auxiliary=len(lab.auxiliary),
        baselines=findings.baselines,
        cuts=findings.cuts,
        control=findings.control,
        policy=policy.name,
        limits=LIMITS,
        seed=options.seed,
        threads=torch.get_num_threads(),
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
    files = {stored.file: artifact.read_file(stored) for stored in changed.files}
    return write_artifact(artifact.root, changed, files)


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
    if "auxiliary" in options.attack and options.auxiliary is None:
        if options.attack != list(DEFAULT_ATTACKS):
            raise UsageError("--attack auxiliary needs pictures of its own: --auxiliary DIR")
        return [name for name in options.attack if name != "auxiliary"]
    return list(options.attack)


def _attack(
    lab: Laboratory, names: Sequence[str], work: WorkFolder, console: Console
) -> list[Loot]:
    """Run what no earlier run has finished; keep each attack as soon as it is done."""
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    everything = []
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        bars = {name: progress.add_task(name, total=steps_of(name, lab)) for name in names}
        for name in names:
            loot = work.load(name)
            if loot is None:
                loot = attack_all(lab, [name], lambda which: progress.advance(bars[which]))
                work.keep(name, loot)
            progress.update(bars[name], completed=steps_of(name, lab))
            everything += loot
    return everything


def _laboratory(options: Options, artifact: Artifact) -> tuple[Laboratory, str]:
    manifest, budget = artifact.manifest, BUDGETS[options.budget]
    crop = manifest.preprocess.crop if manifest.preprocess else (0, 0)
    size = (options.size, options.size) if options.size else crop
    if any(side > most for side, most in zip(size, crop, strict=True)):
        raise UsageError(f"--size {options.size}: the model's own size is {crop[0]} x {crop[1]}")
    targets = [
        Target(
            position,
            manifest.positions[position],
            tuple(spec.name for spec in manifest.egress(position)),
            transport_of(artifact, position, options.codec, options.quality),
        )
        for position in _positions(options.cut, manifest)
    ]
    pictures, digest = read_pictures(
        options.images, manifest, size, budget.pictures + budget.tuned, options.seed
    )
    empty = np.empty((0, 3, *size), np.float32)
    auxiliary = (
        read_pictures(options.auxiliary, manifest, size, budget.made, options.seed)[0]
        if options.auxiliary
        else empty
    )
    return Laboratory(artifact, targets, (pictures, auxiliary), budget, options.seed), digest


def _positions(names: Sequence[str], manifest: Manifest) -> list[int]:
    cuts = [cut.name for cut in manifest.cuts]
    wanted = cuts if list(names) == ["all"] else list(names)
    for name in wanted:
        if name not in cuts:
            raise UsageError(f"--cut: no cut {name!r} here; there are: {', '.join(cuts)}")
    return sorted({manifest.position(name) for name in wanted})


def read_pictures(
    folder: Path, manifest: Manifest, size: tuple[int, int], limit: int, seed: int
) -> tuple[Floats, str]:
    """Read up to `limit` pictures in a drawn order, (n, 3, height, width), 0 to 1.

    Returns:
        The pictures, and the sha256 of their files in this order.

    Raises:
        UsageError: no pictures, or a model that takes none.
        PictureError: a damaged one.
    """
    if manifest.preprocess is None:
        raise UsageError("the audit attacks models that take pictures")
    scale = max(size) / max(manifest.preprocess.crop)
    short = max(*size, round(manifest.preprocess.resize_short_side * scale))
    small = manifest.preprocess.model_copy(update={"crop": size, "resize_short_side": short})
    paths = list_pictures(folder)
    order = np.random.default_rng(seed).permutation(len(paths))[:limit]
    digest, rows = hashlib.sha256(), []
    for index in order:
        content = paths[index].read_bytes()
        digest.update(content)
        pixels = decode_picture(content, small)
        rows.append(pixels.transpose(2, 0, 1).astype(np.float32) / 255)
    return np.stack(rows), digest.hexdigest()


def _facts(options: Options, artifact: Artifact, digest: str) -> dict[str, object]:
    """What decides the results of an attack, so that an interrupted audit goes on with its own."""
    return {
        "artifact": artifact.id.hex(),
        "pictures": digest,
        "auxiliary": str(options.auxiliary),
        "budget": options.budget,
        "codec": [options.codec, options.quality],
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
    return " ".join(words)
