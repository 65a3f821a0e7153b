"""`splitserve bench memory`: all plans of an artifact against the unsplit model."""

from pathlib import Path

import numpy as np
from pydantic import Field
from pydantic_settings import SettingsConfigDict
from rich.console import Console
from rich.progress import track

from splitserve.bench.fixture import prepared
from splitserve.bench.measure import median
from splitserve.bench.process import measured
from splitserve.output import print_document
from splitserve.settings import Settings

LIMIT = 1.3
SWITCH_LIMIT_S = 0.005

# Run in processes of their own: imports and the allocator's history would blur the figures.
WHOLE = """
import sys, json, pathlib, resource
import numpy as np
from splitserve.runtime import Graph, RuntimeOptions
def rss():
    words = pathlib.Path("/proc/self/statm").read_text().split()
    return int(words[1]) * resource.getpagesize()
before = rss()
graph = Graph(pathlib.Path(sys.argv[1]).read_bytes(), RuntimeOptions())
image = np.zeros((1, 3, 224, 224), np.float32)
for _ in range(5):
    graph.run({graph.inputs[0]: image})
print(json.dumps({"resident_bytes": rss(), "before_bytes": before}))
"""
PLANS = """
import sys, json, pathlib, resource, time
import numpy as np
from splitserve.artifact import load_artifact
from splitserve.runtime import RuntimeOptions, open_chain
def rss():
    words = pathlib.Path("/proc/self/statm").read_text().split()
    return int(words[1]) * resource.getpagesize()
before = rss()
artifact = load_artifact(pathlib.Path(sys.argv[1]))
count = len(artifact.manifest.segments)
in_use = [p for p in range(1, count) if artifact.manifest.cuts[p - 1].fused_head][-1:]
chain = open_chain(artifact, RuntimeOptions(), fused=in_use)
image = {artifact.manifest.inputs[0].name: np.zeros((1, 3, 224, 224), np.float32)}
def plan(position):
    return chain.run(chain.run(image, 0, position), position, count)
for position in range(count + 1):
    plan(position)
def timed(position):
    started = time.perf_counter()
    plan(position)
    return time.perf_counter() - started
switches = []
for turn in range(10):
    for position in range(count + 1):
        first = timed(position)
        steady = sorted(timed(position) for _ in range(3))[1]
        switches.append(first - steady)
print(json.dumps({"resident_bytes": rss(), "before_bytes": before, "switch_s": switches}))
"""


class Options(Settings):
    """Measure resident memory with all plans loaded, and what changing the plan costs.

    The ratio compares whole processes after five runs each, taken in turn. A change costs the
    first request under a new plan minus a steady one under the same plan.
    """

    model_config = SettingsConfigDict(
        cli_prog_name="splitserve bench memory", env_prefix="SPLITSERVE_BENCH_MEMORY_"
    )

    rounds: int = Field(default=5, ge=1)
    """Fresh processes of each kind."""
    build: Path = Path("build")
    """Folder that keeps the model between runs."""
    as_json: bool = False
    """Print one JSON document."""


def run(options: Options) -> int:
    """Measure, print, and exit 3 when a limit is passed."""
    model, artifact = prepared(options.build)
    console = Console(stderr=True)
    whole, plans = [], []
    for _ in track(range(options.rounds), "measuring", console=console, transient=True):
        whole.append(measured(WHOLE, str(model)))
        plans.append(measured(PLANS, str(artifact.root)))
    unsplit, every = (median([r["resident_bytes"] for r in rows]) for rows in (whole, plans))
    grown = [
        median([r["resident_bytes"] - r["before_bytes"] for r in rows]) for rows in (whole, plans)
    ]
    switches = [value for row in plans for value in row["switch_s"]]
    result = {
        "unsplit_bytes": unsplit,
        "all_plans_bytes": every,
        "ratio": every / unsplit,
        "ratio_without_interpreter": grown[1] / grown[0],
        "switch_p50_s": median(switches),
        "switch_p99_s": float(np.percentile(switches, 99)),
        "switch_max_s": max(switches),
        "rounds": options.rounds,
    }
    if options.as_json:
        print_document(result)
    else:
        Console().print(
            f"unsplit session {unsplit / 1e6:.0f} MB, all plans {every / 1e6:.0f} MB:"
            f" {result['ratio']:.2f} times (limit {LIMIT}); without the interpreter and its"
            f" libraries {result['ratio_without_interpreter']:.2f} times\n"
            f"changing the plan: p50 {result['switch_p50_s'] * 1e3:.2f} ms, p99"
            f" {result['switch_p99_s'] * 1e3:.2f} ms, worst"
            f" {result['switch_max_s'] * 1e3:.2f} ms of {len(switches)} (limit"
            f" {SWITCH_LIMIT_S * 1e3:.0f} ms at p99)",
            highlight=False,
        )
    return 0 if result["ratio"] <= LIMIT and result["switch_p99_s"] <= SWITCH_LIMIT_S else 3
