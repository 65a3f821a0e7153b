"""`splitserve bench codec`: bytes, agreement and time of every codec at every cut, on one set."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from splitserve.artifact import INPUT, Manifest, load_artifact
from splitserve.bench.rate_plot import Curve, Point, draw_rates
from splitserve.bench.rates import Meter
from splitserve.calibrate import Inputs, read_inputs
from splitserve.codec import use_one_thread
from splitserve.errors import UsageError
from splitserve.output import print_document
from splitserve.settings import Counts, Names, Settings

QUALITIES = (30, 50, 60, 70, 75, 80, 85, 90, 92, 95, 97, 99, 100)
Row = dict[str, Any]
FLOORS = (99.5, 99.0, 98.0, 95.0)
LABELS = {
    "coarse": "step-ans, coarse layer alone",
    "jpeg": "JPEG of the input",
    "webp": "WebP of the input",
    "order-0": "order-0 entropy (bound)",
}


class Options(Settings):
    """Measure every (cut, codec, rate) of a calibrated artifact beside JPEG, WebP and a bound.

    The pictures must be others than those the artifact was calibrated on. With labels.csv in the
    folder, the change of top-1 is measured too. Figures count every byte of the request frame.
    """

    model_config = SettingsConfigDict(
        cli_prog_name="splitserve bench codec",
        env_prefix="SPLITSERVE_BENCH_CODEC_",
        cli_shortcuts={"as-json": "json", "output": "o"},
    )

    artifact: CliPositionalArg[Path]
    """Calibrated artifact folder."""
    images: Path
    """Folder of pictures, others than those of the calibration."""
    output: Path = Path("build/codec")
    """Folder for the plots (PNG) and all measured points (rates.json)."""
    cuts: Names = Field(default=[])
    """Cuts to measure, comma-separated; by default every calibrated one."""
    qualities: Counts = Field(default=list(QUALITIES))
    """JPEG and WebP qualities, comma-separated."""
    limit: int = Field(default=500, ge=20)
    """Most pictures to use."""
    seed: int = 0
    """Of the order in which pictures are drawn."""
    as_json: bool = False
    """Print one JSON document."""


def run(options: Options) -> int:
    """Measure, draw and print."""
    artifact = load_artifact(options.artifact)
    manifest = artifact.manifest
    if manifest.preprocess is None:
        raise UsageError(f"{options.artifact} takes no pictures, so there is no rival to compare")
    calibrated = [cut.name for cut in manifest.cuts if cut.calibration]
    names = list(dict.fromkeys(options.cuts or calibrated))
    if not names or not set(names) <= set(calibrated):
        raise UsageError(
            f"not calibrated: {', '.join(set(names) - set(calibrated)) or 'any cut'};"
            f" run: splitserve calibrate {options.artifact} --images DIR"
        )
    console = Console(stderr=True)
    inputs = read_inputs(options.images, manifest, options.limit, options.seed)
    refuse_known(manifest, inputs)
    use_one_thread()
    meter = Meter(artifact, inputs)
    rows = [
        row for name in [INPUT, *names] for row in meter.measure(name, options.qualities, console)
    ]
    promises = _promised(manifest, rows)
    options.output.mkdir(parents=True, exist_ok=True)
    result = {
        "model": manifest.model.name,
        "artifact": artifact.id.hex(),
        "pictures": len(inputs),
        "inputs_sha256": inputs.sha256,
        "is_unseen": bool(manifest.calibrated_on),
        "promises": promises,
        "rows": rows,
    }
    (options.output / "rates.json").write_text(json.dumps(result, indent=1) + "\n")
    for name in names:
        title = f"{manifest.model.name} cut at {name}, {len(inputs)} pictures"
        _draw(title, name, rows, options.output / f"{_file_name(name)}.png")
    if options.as_json:
        print_document(result)
    else:
        _show_promises(promises)
        _show(_cheapest(rows), result, options.output)
    return 0


def refuse_known(manifest: Manifest, inputs: Inputs) -> None:
    """Refuse pictures that the calibration was given: the tables know them.

    Raises:
        UsageError: how many there are.
    """
    calibrations = [cut.calibration for cut in manifest.cuts if cut.calibration]
    if any(calibration.inputs_sha256 == inputs.sha256 for calibration in calibrations):
        raise UsageError("these are the pictures of the calibration; name others with --images")
    known = len(set(manifest.calibrated_on).intersection(inputs.names))
    if known:
        raise UsageError(
            f"{known} of {len(inputs)} pictures were given to the calibration; name others with"
            " --images"
        )


def _cheapest(rows: Sequence[Row]) -> list[tuple[float, Row]]:
    """For every cut, codec and floor the fewest bytes that keep it; once, where floors share it."""
    found: list[tuple[float, Row]] = []
    for cut, codec in dict.fromkeys((row["cut"], row["codec"]) for row in rows):
        own = [row for row in rows if (row["cut"], row["codec"]) == (cut, codec)]
        for floor in FLOORS:
            good = [row for row in own if row["agreement"] >= floor]
            best = min(good, key=lambda row: float(row["bytes_mean"]), default=None)
            if best and (not found or found[-1][1] is not best):
                found.append((floor, best))
    return found


def _promised(manifest: Manifest, rows: Sequence[Row]) -> list[Row]:
    """What calibration promised of each rate, and what was seen on these pictures."""
    seen = {(row["cut"], row["setting"]): row for row in rows if row["codec"] == "step-ans"}
    return [
        {"floor": rate.floor, "promised": rate.agreement.value, "promised_bytes": rate.bytes_mean}
        | seen[cut.name, str(rate.parameter)]
        for cut in manifest.cuts
        for rate in (cut.calibration.rates if cut.calibration else ())
        if (cut.name, str(rate.parameter)) in seen
    ]


def _draw(title: str, cut: str, rows: Sequence[Row], target: Path) -> None:
    curves = [
        Curve(
            codec,
            LABELS.get(codec, codec),
            [
                Point(
                    row["bytes_mean"] / 1e3,
                    row["agreement"],
                    row["agreement_low"],
                    row["agreement_high"],
                )
                for row in rows
                if row["codec"] == codec and row["cut"] in (cut, INPUT)
            ],
        )
        for codec in ("step-ans", "coarse", "order-0", "affine-u8", "jpeg", "webp")
    ]
    draw_rates(title, curves, target)


def _file_name(cut: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_+." else "_" for letter in cut)


def _show_promises(promises: Sequence[Row]) -> None:
    table = Table(
        title="rates of the calibration, on these pictures", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("cut", no_wrap=True)
    for name in ("floor", "promised", "seen here (95 %)", "bytes", "p95", "top-1 (95 %)"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in promises:
        low, high = row["agreement_low"], row["agreement_high"]
        change = (
            f"{row['top1_change']:+.1f} ({row['top1_change_low']:+.1f} to"
            f" {row['top1_change_high']:+.1f})"
            if "top1_change" in row
            else ""
        )
        table.add_row(
            escape(row["cut"]),
            f"{row['floor']:g}",
            f"{row['promised']:.1f}",
            f"{row['agreement']:.1f} ({low:.1f}-{high:.1f})",
            f"{row['bytes_mean']:,.0f}",
            f"{row['bytes_p95']:,.0f}",
            change,
        )
    Console().print(table)


def _show(best: Sequence[tuple[float, Row]], result: dict[str, Any], output: Path) -> None:
    table = Table(
        title=f"{escape(result['model'])}: the fewest bytes that keep each agreement",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("at", no_wrap=True)
    table.add_column("codec", no_wrap=True)
    for name in ("floor", "setting", "agree", "bytes", "p95", "top-1", "enc", "dec"):
        table.add_column(name, justify="right", no_wrap=True)
    shown = ""
    for floor, row in best:
        if shown not in ("", row["cut"]):
            table.add_section()
        change = row.get("top1_change")
        table.add_row(
            "" if shown == row["cut"] else escape(row["cut"]),
            row["codec"],
            f"{floor:g}",
            row["setting"],
            f"{row['agreement']:.1f}",
            f"{row['bytes_mean']:,.0f}",
            f"{row['bytes_p95']:,.0f}",
            "" if change is None else f"{change:+.1f}",
            f"{row['encode_ms_median']:.2f}" if "encode_ms_median" in row else "",
            f"{row['decode_ms_median']:.2f}" if "decode_ms_median" in row else "",
        )
        shown = row["cut"]
    Console().print(table)
    unseen = (
        "pictures that the calibration was not given"
        if result["is_unseen"]
        else "pictures, which may be some of the calibration's: the artifact does not name those,"
        " calibrate it anew"
    )
    Console(stderr=True).print(
        f"{result['pictures']} {unseen}; bytes of the whole request frame, mean and p95; top-1:"
        " change in points; times: median ms, one thread; order-0 is a bound, not a codec. All"
        f" points: {output / 'rates.json'}, plots beside it.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
