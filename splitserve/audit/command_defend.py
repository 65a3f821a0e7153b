"""`splitserve defend`: put a defence into the artifact, for the device to apply."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict
from rich.console import Console

from splitserve.agreement import best_class, estimate
from splitserve.artifact import (
    Artifact,
    Cut,
    Defence,
    Estimate,
    Withdrawn,
    load_artifact,
    rewrite_manifest,
)
from splitserve.audit.defences import fit_defence, parse_defence
from splitserve.audit.laboratory import named_cuts
from splitserve.audit.material import draw_pictures, read_pictures
from splitserve.audit.report import show_defence
from splitserve.audit.subject import Floats, Subject, Transport
from splitserve.errors import UsageError
from splitserve.output import print_document
from splitserve.runtime import Chain, RuntimeOptions, open_chain
from splitserve.settings import Names, Settings


class Options(Settings):
    """Choose what is done to the features of some cuts before they are encoded.

    The artifact gets a new id, and what was calibrated or audited at these cuts is dropped, for it
    no longer holds: calibrate, audit and profile again. Amounts are fitted to the pictures.
    """

    model_config = SettingsConfigDict(
        cli_prog_name="splitserve defend", env_prefix="SPLITSERVE_DEFEND_"
    )

    artifact: CliPositionalArg[Path]
    """Artifact folder."""
    cut: Names = Field(min_length=1)
    """Cuts to defend, comma-separated, or `all`."""
    defence: str
    """none, noise:0.01 (no unbiased attacker's mean squared error is below 0.01, a PSNR of 20 dB),
    noise:0.5rms (half as strong as the features), step:0.5 (rounded to half standard deviations),
    step:4bit, channels:0.5 (half of the channels travel), withdrawn (nothing may cross)."""
    images: Path | None = None
    """Folder of pictures to fit to; `none` and `withdrawn` need none."""
    limit: int = Field(default=64, ge=2, le=10_000)
    """Most pictures to fit to."""
    seed: int = 0
    """Of the drawing and of the probes."""
    as_json: bool = False
    """Print one JSON document."""


def run(options: Options) -> int:
    """Fit, write and say what it costs."""
    artifact = load_artifact(options.artifact)
    manifest, asked = artifact.manifest, parse_defence(options.defence)
    wanted = named_cuts(manifest, options.cut)
    pictures = _pictures(
        options, artifact, is_needed=asked is not None and asked.kind != "withdrawn"
    )
    chain, cuts, rows = open_chain(artifact, RuntimeOptions()), list(manifest.cuts), {}
    for name in wanted:
        position = manifest.position(name)
        fitted = fit_defence(asked, artifact, position, pictures, chain, options.seed)
        update = {"defence": fitted, "calibration": None, "leakage": None}
        cuts[position - 1] = Cut.model_validate(cuts[position - 1].model_copy(update=update))
        rows[name] = fitted, _agreement(artifact, position, pictures, chain, fitted)
    is_fitted = any(cut.calibration or cut.exit for cut in cuts)
    inputs = manifest.calibrated_on if is_fitted else ()
    changed = manifest.model_copy(update={"cuts": tuple(cuts), "calibrated_on": inputs})
    written = rewrite_manifest(artifact, changed)
    _show(rows, written, as_json=options.as_json)
    return 0


def _pictures(options: Options, artifact: Artifact, *, is_needed: bool) -> Floats:
    preprocess = artifact.manifest.preprocess
    if preprocess is None:
        raise UsageError(f"{artifact.root}: defences are fitted to pictures, this model takes none")
    if options.images is None:
        if is_needed:
            raise UsageError(f"--defence {options.defence} is fitted to pictures: --images DIR")
        return read_pictures([], preprocess, preprocess.crop)
    paths = draw_pictures(options.images, options.limit, options.seed)
    return read_pictures(paths, preprocess, preprocess.crop)


def _agreement(
    artifact: Artifact, position: int, pictures: Floats, chain: Chain, defence: Defence | None
) -> Estimate | None:
    """Answers behind the defence alone that are the unsplit model's."""
    if not len(pictures) or isinstance(defence, Withdrawn):
        return None
    subject, output = Subject(artifact, position), artifact.manifest.outputs[0].name
    plain, hits = subject.collect(pictures), []
    guarded = Transport(None, "none", defence=defence).carry(plain)
    for index in range(len(pictures)):
        answers = [
            chain.run(
                {n: t[index : index + 1] for n, t in zip(subject.egress, tensors, strict=True)},
                position,
                len(chain),
            )[output]
            for tensors in (plain, guarded)
        ]
        hits.append(best_class(answers[0]) == best_class(answers[1]))
    return estimate(hits)


def _show(
    rows: dict[str, tuple[Defence | None, Estimate | None]], written: Artifact, *, as_json: bool
) -> None:
    if as_json:
        cuts = {
            name: {
                "defence": defence and defence.model_dump(mode="json"),
                "agreement": agreement and agreement.model_dump(mode="json"),
            }
            for name, (defence, agreement) in rows.items()
        }
        print_document({"id": written.id.hex(), "cuts": cuts})
        return
    console = Console()
    for name, (defence, agreement) in rows.items():
        kept = (
            f"; {agreement.value:.1f} % [{agreement.low:.1f}, {agreement.high:.1f}] of the answers"
            " stay the same"
            if agreement
            else ""
        )
        text = f"{name}: {show_defence(defence)}{kept}"
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    root = written.root
    console.print(
        f"artifact {written.id.hex()}; next: splitserve calibrate {root} --images DIR,"
        f" splitserve audit-leakage {root} --images DIR --write",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
