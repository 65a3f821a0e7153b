"""What importing a part loads, seen in a fresh process; the linter reads only the source."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import splitserve.cli

DEVICE = {"torch", "onnx", "scipy", "fastapi", "uvicorn", "matplotlib"}
FLOORS = (
    "splitserve.agreement", "splitserve.artifact", "splitserve.cli", "splitserve.codec",
    "splitserve.defence", "splitserve.documents",
    "splitserve.errors", "splitserve.exits", "splitserve.inspect", "splitserve.logs",
    "splitserve.output", "splitserve.picture", "splitserve.plans", "splitserve.profile",
    "splitserve.runtime", "splitserve.settings", "splitserve.tensors", "splitserve.wire",
)  # fmt: skip


def loaded_by(*modules: str) -> set[str]:
    """Top-level names in sys.modules after importing some modules."""
    script = (
        "import importlib, json, sys\n"
        "[importlib.import_module(name) for name in sys.argv[1:]]\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *modules], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


def test_agent_loads_nothing_heavy() -> None:
    names = loaded_by("edge_agent.command")
    assert names.isdisjoint(DEVICE)
    assert "onnxruntime" in names


def test_agent_does_not_load_the_service() -> None:
    assert "cloud_service" not in loaded_by("edge_agent.command")


@pytest.mark.parametrize("module", FLOORS)
def test_shared_floor_loads_nothing_heavy(module: str) -> None:
    assert loaded_by(module).isdisjoint(DEVICE)


def test_profiling_loads_nothing_heavy(tiny_artifact: Path) -> None:
    script = (
        "import json, sys\n"
        "from splitserve.cli import main\n"
        "status = main(['profile', sys.argv[1], '--rounds', '1', '--json'])\n"
        "print(json.dumps([status, *sorted({n.partition('.')[0] for n in sys.modules})]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tiny_artifact)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    status, *names = json.loads(done.stdout.splitlines()[-1])
    assert status == 0
    assert DEVICE.isdisjoint(names)
    assert "onnxruntime" in names


def test_service_loads_nothing_heavy() -> None:
    names = loaded_by("cloud_service.command")
    assert names.isdisjoint({"torch", "onnx", "scipy", "httpx", "edge_agent"})
    assert "onnxruntime" in names


def test_command_table_alone_loads_no_room() -> None:
    names = loaded_by("splitserve.cli")
    assert names.isdisjoint({"onnxruntime", "numpy", "rich", "PIL", "zstandard", "httpx"})


def test_package_itself_loads_nothing() -> None:
    assert loaded_by("splitserve") - loaded_by() == {"splitserve"}


def test_no_floor_is_forgotten_here() -> None:
    folder = Path(splitserve.cli.__file__).parent
    rooms = {path.stem for path in folder.iterdir() if path.suffix == ".py"}
    rooms |= {path.parent.name for path in folder.glob("*/__init__.py")}
    tools = {"__init__", "audit", "bench", "calibrate", "completion", "page", "plan", "split"}
    assert {f"splitserve.{name}" for name in rooms - tools} == set(FLOORS)
