"""`splitserve inspect`: show what an artifact holds."""

from pathlib import Path

from pydantic_settings import CliPositionalArg, SettingsConfigDict
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from splitserve.artifact import Artifact, Manifest, load_artifact
from splitserve.output import print_document
from splitserve.settings import Settings
from splitserve.tensors import TensorSpec


class Options(Settings):
    """Show an artifact after comparing every file with its hash."""

    model_config = SettingsConfigDict(
        cli_prog_name="splitserve inspect", env_prefix="SPLITSERVE_INSPECT_"
    )

    artifact: CliPositionalArg[Path]
    """Artifact folder."""
    as_json: bool = False
    """Print the manifest and the id as one JSON document."""


def run(options: Options) -> int:
    """Verify and print."""
    artifact = load_artifact(options.artifact)
    for stored in artifact.manifest.files:
        artifact.read_file(stored)
    if options.as_json:
        manifest = artifact.manifest.model_dump(mode="json")
        print_document({"id": artifact.id.hex(), "manifest": manifest})
    else:
        _show(artifact)
    return 0


def _show(artifact: Artifact) -> None:
    manifest, console = artifact.manifest, Console()
    model = manifest.model
    console.print(
        f"{model.name}  opset {model.opset}, {model.macs / 1e6:.0f} MMAC\n"
        f"id        {artifact.id.hex()}\n"
        f"source    sha256 {model.sha256}\n"
        f"input     {_specs(manifest.inputs)}\n"
        f"output    {_specs(manifest.outputs)}\n"
        f"labels    {len(manifest.labels) or 'none'}\n"
        f"picture   {manifest.preprocess or 'no preprocessing'}\n"
        f"made by   {', '.join(f'{name} {number}' for name, number in manifest.tools.items())}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    table = Table(title="positions and the segments between them")
    table.add_column("position", no_wrap=True)
    table.add_column("egress", overflow="fold")
    for name in ("raw kB", "MACs", "next", "kB"):
        table.add_column(name, justify="right", no_wrap=True)
    shares = [0.0, *(cut.macs_share for cut in manifest.cuts), 1.0]
    for position, name in enumerate(manifest.positions):
        specs = manifest.egress(position)
        file, size = "", ""
        if position < len(manifest.segments):
            segment = manifest.segments[position]
            file, size = segment.file, f"{segment.bytes / 1e3:,.1f}"
        raw = sum(spec.raw_bytes() for spec in specs) / 1e3
        share = f"{shares[position]:.1%}"
        table.add_row(escape(name), escape(_specs(specs)), f"{raw:,.1f}", share, file, size)
    console.print(table)
    if any(cut.calibration for cut in manifest.cuts):
        console.print(_rates(manifest))
    if any(cut.exit for cut in manifest.cuts):
        console.print(_exits(manifest))
    if any(cut.defence or cut.leakage for cut in manifest.cuts):
        console.print(_leakage(manifest))
    console.print(f"[green]all {len(manifest.files)} files match their hashes[/]")


def _rates(manifest: Manifest) -> Table:
    """What step-ans was seen to do at each calibrated cut."""
    table = Table(title="step-ans; agreement with the unsplit model in percent, 95 % interval")
    table.add_column("cut", no_wrap=True)
    for name in ("floor", "agreement", "bytes", "p95", "step", "inputs"):
        table.add_column(name, justify="right", no_wrap=True)
    calibrated = [(cut.name, cut.calibration) for cut in manifest.cuts if cut.calibration]
    for name, calibration in calibrated:
        for rate in calibration.rates:
            seen = rate.agreement
            table.add_row(
                escape(name),
                f"{rate.floor:g}",
                f"{seen.value:.2f} ({seen.low:.2f} to {seen.high:.2f})",
                f"{rate.bytes_mean:,.0f}",
                f"{rate.bytes_p95:,.0f}",
                f"{rate.parameter}",
                f"{calibration.measured_on}",
            )
    return table


def _exits(manifest: Manifest) -> Table:
    """What the exits were seen to be worth at each floor of agreement."""
    table = Table(title="exits: early answers that agree with the whole model")
    table.add_column("cut", no_wrap=True)
    for name in ("agreement from", "confidence from", "uploads %", "inputs", "kB"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, found in [(cut.name, cut.exit) for cut in manifest.cuts if cut.exit]:
        size = f"{found.graph.bytes / 1e3:,.1f}"
        for floor in found.floors:
            figures = (f"{floor.agreement:g}", f"{floor.threshold:.4f}", f"{floor.upload:.1f}")
            table.add_row(escape(name), *figures, f"{found.fitted_on}", size)
        if not found.floors:
            table.add_row(escape(name), "none kept", "", "", f"{found.fitted_on}", size)
    return table


def _leakage(manifest: Manifest) -> Table:
    """What is done against leakage, and what an audit found."""
    table = Table(title="defences, and what splitserve audit-leakage found: 5 exposed to 1")
    for name in ("cut", "defence", "level", "behind", "identified %", "expires"):
        table.add_column(name, no_wrap=True)
    for cut in (cut for cut in manifest.cuts if cut.defence or cut.leakage):
        asked, found = cut.defence.asked if cut.defence else "none", cut.leakage
        if found is None:
            table.add_row(escape(cut.name), asked, "not audited", "", "", "")
            continue
        quality = "" if found.quality is None else f" {found.quality:g}"
        behind, identified = f"{found.codec}{quality}", f"{found.identified:.1f}"
        table.add_row(escape(cut.name), asked, str(found.level), behind, identified, found.expires)
    return table


def _specs(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype} {spec.sizes}" for spec in specs)
