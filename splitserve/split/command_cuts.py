"""`splitserve cuts`: list every single-tensor cut of an ONNX model."""

from pathlib import Path
from typing import Any

from pydantic_settings import CliPositionalArg, SettingsConfigDict
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from splitserve.output import print_document
from splitserve.settings import Settings
from splitserve.split.cuts import CutCandidate, choose_cuts, find_cuts, mark_fused
from splitserve.split.graph import GraphView, load_graph


class Options(Settings):
    """List every single-tensor cut of an ONNX model, in the order of the graph."""

    model_config = SettingsConfigDict(
        cli_prog_name="splitserve cuts", env_prefix="SPLITSERVE_CUTS_"
    )

    model: CliPositionalArg[Path]
    """ONNX file."""
    as_json: bool = False
    """Print one JSON document."""


def run(options: Options) -> int:
    """Print the cuts."""
    graph = load_graph(options.model)
    cuts = mark_fused(graph, find_cuts(graph))
    chosen = {cut.tensor.name for cut in choose_cuts(graph, cuts)}
    if options.as_json:
        rows = [_row(cut, chosen) for cut in cuts]
        print_document({"model": str(options.model), "macs": graph.macs, "cuts": rows})
    else:
        _show(options.model, graph, cuts, chosen)
    return 0


def _row(cut: CutCandidate, chosen: set[str]) -> dict[str, Any]:
    return {
        "name": cut.tensor.name,
        "dtype": cut.tensor.dtype,
        "shape": list(cut.tensor.shape),
        "elements": cut.tensor.elements(),
        "raw_bytes": cut.tensor.raw_bytes(),
        "macs_share": round(cut.macs_share, 6),
        "is_fused": cut.is_fused,
        "is_chosen": cut.tensor.name in chosen,
    }


def _show(path: Path, graph: GraphView, cuts: list[CutCandidate], chosen: set[str]) -> None:
    table = Table(
        title=f"{escape(path.name)}: {len(cuts)} single-tensor cuts, {graph.macs / 1e6:.0f} MMAC"
    )
    table.add_column("cut", overflow="fold")
    for name in ("shape", "elements", "raw kB", "MACs"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("note", no_wrap=True)
    for cut in cuts:
        note = "chosen" if cut.tensor.name in chosen else "fused" if cut.is_fused else ""
        table.add_row(
            escape(cut.tensor.name),
            cut.tensor.sizes,
            f"{cut.tensor.elements():,}",
            f"{cut.tensor.raw_bytes() / 1e3:,.1f}",
            f"{cut.macs_share:.1%}",
            note,
            style="bold" if cut.tensor.name in chosen else "dim" if cut.is_fused else "",
        )
    Console().print(table)
    Console(stderr=True).print(
        "chosen: what `splitserve split` takes by itself. fused: this tensor lies inside what ONNX"
        " Runtime runs as one kernel; cutting there is legal and slower.",
        style="dim",
    )
