"""`splitserve bench footprint`: what the agent's process imports, weighs and waits for."""

import tempfile
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import SettingsConfigDict
from rich.console import Console

from splitserve.bench.fixture import prepared
from splitserve.bench.measure import median
from splitserve.bench.process import measured
from splitserve.bench.samples import write_views
from splitserve.errors import MeasurementError
from splitserve.output import print_document
from splitserve.settings import Settings

FOREIGN = ("torch", "onnx", "scipy", "fastapi", "uvicorn")

AGENT = """
import io, json, pathlib, resource, sys, time
started = time.perf_counter()
from splitserve.cli import main
import edge_agent.command
imported = time.perf_counter()
def rss():
    words = pathlib.Path("/proc/self/statm").read_text().split()
    return int(words[1]) * resource.getpagesize()
after_import = rss()
sink, sys.stdout = sys.stdout, io.StringIO()
status = main(["agent", "--artifact", sys.argv[1], "--source", sys.argv[2]])
print(json.dumps({
    "status": status,
    "import_s": imported - started,
    "import_bytes": after_import,
    "resident_bytes": rss(),
    "total_s": time.perf_counter() - started,
    "modules": len(sys.modules),
    "foreign": [name for name in sys.argv[3].split(",") if name in sys.modules],
}), file=sink)
"""


class Options(Settings):
    """Run the agent in fresh processes on the sample pictures, the whole model on the edge."""

    model_config = SettingsConfigDict(
        cli_prog_name="splitserve bench footprint", env_prefix="SPLITSERVE_BENCH_FOOTPRINT_"
    )

    rounds: int = Field(default=5, ge=1)
    """Fresh processes."""
    build: Path = Path("build")
    """Folder that keeps the model between runs."""
    as_json: bool = False
    """Print one JSON document."""


def run(options: Options) -> int:
    """Measure, print, and exit 3 when a module is there that a device must not need."""
    _, artifact = prepared(options.build)
    with tempfile.TemporaryDirectory() as folder:
        write_views(Path(folder), rounds=1, seed=0)
        rows = [_agent(artifact.root, folder) for _ in range(options.rounds)]
    foreign = sorted({name for row in rows for name in row["foreign"]})
    names = ("import_s", "import_bytes", "resident_bytes", "total_s", "modules")
    result = {name: median([row[name] for row in rows]) for name in names}
    if options.as_json:
        print_document(result | {"foreign": foreign, "rounds": options.rounds})
    else:
        Console().print(
            f"import {result['import_s'] * 1e3:.0f} ms, {result['modules']:.0f} modules; resident"
            f" {result['import_bytes'] / 1e6:.0f} MB after import,"
            f" {result['resident_bytes'] / 1e6:.0f} MB after answering five pictures\n"
            f"not loaded: {', '.join(name for name in FOREIGN if name not in foreign)}",
            highlight=False,
        )
    return 3 if foreign else 0


def _agent(artifact: Path, pictures: str) -> dict[str, Any]:
    result = measured(AGENT, str(artifact), pictures, ",".join(FOREIGN))
    if result["status"]:
        raise MeasurementError(f"the agent ended with status {result['status']}")
    return result
