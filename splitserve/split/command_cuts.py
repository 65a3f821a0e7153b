"""`splitserve cuts`: list the cuts of an ONNX model, of one tensor or several."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from splitserve.output import print_document
from splitserve.settings import Names, Settings
from splitserve.split.choose import candidates, worthwhile
from splitserve.split.cuts import CutCandidate, find_cuts
from splitserve.split.frontier import find_frontier
from splitserve.split.graph import GraphView, load_graph
from splitserve.split.shapes import parse_shapes, warn_of_free_sizes


class Options(Settings):
    """List every single-tensor cut of an ONNX model, in the order of the graph.

    With --frontier the cuts are listed, of one tensor or several, that no other one beats in both
    multiply-adds on the edge and bytes.
    """

    model_config = SettingsConfigDict(
        cli_prog_name="splitserve cuts", env_prefix="SPLITSERVE_CUTS_"
    )

    model: CliPositionalArg[Path]
    """ONNX file."""
    shape: Names = Field(default=[])
    """Sizes of free dimensions, `NAME=Nx3x320x320` for an input; N keeps one free."""
    frontier: bool = False
    """List the Pareto frontier of multiply-adds on the edge and bytes, cuts of several tensors
    included."""
    as_json: bool = False
    """Print one JSON document."""


def run(options: Options) -> int:
    """Print the cuts."""
    graph = load_graph(options.model, parse_shapes(options.shape))
    warn_of_free_sizes(graph.inputs)
    with Console(stderr=True).status("searching cuts"):
        frontier = find_frontier(graph)
        known = candidates(graph, frontier)
    heads = {cut.head for cut in (frontier if options.frontier else find_cuts(graph))}
    cuts = [cut for cut in known if cut.head in heads]
    chosen = worthwhile(graph, known)
    if options.as_json:
        names = {cut.name for cut in chosen}
        rows = [
            (_tensors if options.frontier else _tensor)(cut) | _facts(cut, names) for cut in cuts
        ]
        print_document({"model": str(options.model), "macs": graph.macs, "cuts": rows})
    else:
        _show(options, graph, cuts, chosen)
    return 0


def _tensor(cut: CutCandidate) -> dict[str, Any]:
    """What describes a cut of one tensor."""
    return {
        "name": cut.name,
        "dtype": cut.tensor.dtype,
        "shape": list(cut.tensor.shape),
        "elements": cut.tensor.elements(),
    }


def _tensors(cut: CutCandidate) -> dict[str, Any]:
    """What describes a cut of any number of tensors."""
    return {"name": cut.name, "egress": [spec.model_dump(mode="json") for spec in cut.egress]}


def _facts(cut: CutCandidate, chosen: set[str]) -> dict[str, Any]:
    return {
        "raw_bytes": cut.raw_bytes(),
        "macs_share": round(cut.macs_share, 6),
        "is_fused": cut.is_fused,
        "is_chosen": cut.name in chosen,
    }


def _show(
    options: Options,
    graph: GraphView,
    cuts: Sequence[CutCandidate],
    chosen: Sequence[CutCandidate],
) -> None:
    what = "cuts on the frontier" if options.frontier else "single-tensor cuts"
    table = Table(
        title=f"{escape(options.model.name)}: {len(cuts)} {what}, {graph.macs / 1e6:.0f} MMAC"
    )
    table.add_column("cut", overflow="fold")
    for name in ("shape", "elements", "raw kB", "MACs"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("note", no_wrap=True)
    names = {cut.name for cut in chosen}
    for cut in cuts:
        is_chosen = cut.name in names
        count = len(cut.egress)
        table.add_row(
            escape(cut.name),
            cut.tensor.sizes if count == 1 else f"{count} tensors",
            f"{sum(spec.elements() for spec in cut.egress):,}",
            f"{cut.raw_bytes() / 1e3:,.1f}",
            f"{cut.macs_share:.1%}",
            "chosen" if is_chosen else "fused" if cut.is_fused else "",
            style="bold" if is_chosen else "dim" if cut.is_fused else "",
        )
    Console().print(table)
    _explain(cuts, chosen)


def _explain(cuts: Sequence[CutCandidate], chosen: Sequence[CutCandidate]) -> None:
    listed = {cut.name for cut in cuts}
    other = [cut.name for cut in chosen if cut.name not in listed]
    also = f" Chosen and not in this list: {', '.join(other)}." if other else ""
    Console(stderr=True).print(
        "chosen: what `splitserve split` takes by itself. fused: a tensor of it lies inside what"
        f" ONNX Runtime runs as one kernel; cutting there is legal and slower.{also}",
        style="dim",
        markup=False,
    )
