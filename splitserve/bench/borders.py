"""`splitserve bench borders`: what segment borders cost against heads and tails in one piece."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import Field
from pydantic_settings import SettingsConfigDict
from rich.console import Console
from rich.progress import track
from rich.table import Table

from splitserve.bench.fixture import prepared
from splitserve.bench.measure import median, p95
from splitserve.output import print_document
from splitserve.runtime import Graph, RuntimeOptions, open_chain
from splitserve.settings import Settings
from splitserve.split import extract, load_graph

Call = Callable[[], object]


class Options(Settings):
    """Time every head and tail of EfficientNet-Lite0 from shared segments and in one piece.

    Both run in alternation in one process; the ratio is of medians.
    """

    model_config = SettingsConfigDict(
        cli_prog_name="splitserve bench borders", env_prefix="SPLITSERVE_BENCH_BORDERS_"
    )

    rounds: int = Field(default=100, ge=3)
    """Runs of each."""
    threads: int = Field(default=1, ge=0)
    """Threads of one run; 0 means all cores."""
    build: Path = Path("build")
    """Folder that keeps the model between runs."""
    as_json: bool = False
    """Print one JSON document."""


def run(options: Options) -> int:
    """Measure and print."""
    model, artifact = prepared(options.build)
    graph, settings = load_graph(model), RuntimeOptions(threads=options.threads)
    chain = open_chain(artifact, settings)
    spec = artifact.manifest.inputs[0]
    noise = np.random.default_rng(0).standard_normal(spec.concrete())
    image = {spec.name: noise.astype(np.float32)}
    count, rows, names = len(chain), [], artifact.manifest.positions
    console = Console(stderr=True)
    for position in track(range(1, count + 1), "measuring", console=console, transient=True):
        border = artifact.manifest.egress(position)
        head = Graph(extract(graph, graph.inputs, border).SerializeToString(), settings)
        pair = (partial(head.run, image), partial(chain.run, image, 0, position))
        rows.append(_row(f"head to {names[position]}", pair, options.rounds))
        if position < count:
            tail = Graph(extract(graph, border, graph.outputs).SerializeToString(), settings)
            features = chain.run(image, 0, position)
            pair = (partial(tail.run, features), partial(chain.run, features, position, count))
            rows.append(_row(f"tail from {names[position]}", pair, options.rounds))
    _report(rows, options)
    return 0


def _row(name: str, pair: tuple[Call, Call], rounds: int) -> dict[str, str | float]:
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 3):
        for index in (0, 1) if turn % 2 else (1, 0):
            started = time.perf_counter()
            pair[index]()
            if turn >= 3:
                times[index].append(time.perf_counter() - started)
    return {
        "part": name,
        "fused_s": median(times[0]),
        "fused_p95_s": p95(times[0]),
        "segments_s": median(times[1]),
        "segments_p95_s": p95(times[1]),
        "ratio": median(times[1]) / median(times[0]),
    }


def _report(rows: list[dict[str, str | float]], options: Options) -> None:
    if options.as_json:
        print_document({"threads": options.threads, "rounds": options.rounds, "rows": rows})
        return
    table = Table(title=f"{options.rounds} runs each, in turn, threads {options.threads or 'all'}")
    table.add_column("part", no_wrap=True)
    for name in ("one piece ms (p95)", "segments ms (p95)", "ratio"):
        table.add_column(name, justify="right")
    for row in rows:
        cells = [
            f"{float(row[f'{kind}_s']) * 1e3:.2f} ({float(row[f'{kind}_p95_s']) * 1e3:.2f})"
            for kind in ("fused", "segments")
        ]
        table.add_row(str(row["part"]), *cells, f"{float(row['ratio']):.3f}")
    Console().print(table)
