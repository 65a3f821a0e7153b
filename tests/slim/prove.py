"""Prove that `[edge]` alone is enough for the device: install it, run it against a real cloud.

Exits 0 when everything holds, 1 with a plain reason when something does not.
"""

import argparse
import contextlib
import hashlib
import json
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SLIM = ROOT / ".venv-slim"
MARK = SLIM / ".installed"
FORBIDDEN = ("torch", "onnx", "scipy", "fastapi", "uvicorn", "starlette")
CUT = "block5"
LABELS = {
    "coffee.png": ("espresso",),
    "camera.png": ("tripod",),
    "chelsea.png": ("tiger cat", "Egyptian cat", "tabby"),
}
INSTALL_S, SPLIT_S, AGENT_S, SERVE_S, STOP_S = 900, 300, 120, 60, 10

# Runs the agent as its console script would, then tells what the process has become.
AGENT = """
import json, resource, sys, time
started = time.perf_counter()
from splitserve import cli
import edge_agent.command
import_s = time.perf_counter() - started
status = cli.main(sys.argv[2:])
forbidden = [name for name in sys.argv[1].split(",") if name in sys.modules]
rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
facts = {"status": status, "forbidden": forbidden, "import_s": import_s, "rss_bytes": rss,
         "modules": len(sys.modules)}
print(json.dumps(facts), file=sys.stderr)
sys.exit(status)
"""
FIND = """
import importlib.util, json, sys
print(json.dumps([name for name in sys.argv[1:] if importlib.util.find_spec(name)]))
"""


class NotProvenError(Exception):
    """Something does not hold; the message says what."""


def say(text: str) -> None:
    """Tell how far the proof is."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def call(words: Sequence[str | Path], limit_s: float) -> subprocess.CompletedProcess[str]:
    """Run a command to its end.

    Raises:
        NotProvenError: it failed, or took longer than `limit_s`.
    """
    texts = [str(word) for word in words]
    try:
        done = subprocess.run(
            texts, capture_output=True, text=True, timeout=limit_s, check=False, cwd=ROOT
        )
    except subprocess.TimeoutExpired as error:
        raise NotProvenError(f"{' '.join(texts[:4])} took longer than {limit_s} s") from error
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise NotProvenError(f"{' '.join(texts[:4])} ended with {done.returncode}:\n{last}")
    return done


def sources_hash() -> str:
    """Hash what the installation depends on, the packages included: they are not editable here."""
    digest = hashlib.sha256(sys.version.encode())
    packages = (ROOT / name for name in ("splitserve", "edge_agent", "cloud_service"))
    modules = sorted(path for package in packages for path in package.rglob("*.py"))
    for path in (ROOT / "pyproject.toml", ROOT / "constraints.txt", *modules):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def requirements_hash() -> str:
    """Hash what pip resolves."""
    digest = hashlib.sha256(sys.version.encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def install() -> Path:
    """Bring .venv-slim up to date; return its interpreter.

    A changed requirement starts from nothing; changed code is only installed again.
    """
    python = SLIM / "bin" / "python"
    known = MARK.read_text().split() if MARK.is_file() else []
    wanted = [requirements_hash(), sources_hash()]
    if known == wanted:
        say(f"{SLIM.name} is up to date")
        return python
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if known[:1] != wanted[:1]:
        say(f"{SLIM.name}: installing [edge] alone")
        shutil.rmtree(SLIM, ignore_errors=True)
        call([sys.executable, "-m", "venv", SLIM], INSTALL_S)
        call([*pip, "-c", "constraints.txt", ".[edge]"], INSTALL_S)
    else:
        say(f"{SLIM.name}: installing the changed code")
        call([*pip, "--no-deps", "--force-reinstall", "."], INSTALL_S)
    MARK.write_text("\n".join(wanted))
    return python


def check_absent(python: Path) -> None:
    """Check that the heavy libraries cannot even be imported there."""
    found = json.loads(call([python, "-c", FIND, *FORBIDDEN], 60).stdout)
    if found:
        raise NotProvenError(f"[edge] brings {', '.join(found)}")
    where = "import edge_agent; print(edge_agent.__file__)"
    origin = call([python, "-I", "-c", where], 60).stdout.strip()
    if not Path(origin).is_relative_to(SLIM):
        raise NotProvenError(f"the code under test is {origin}, not the installed one")


def make_artifact(full: Path, folder: Path) -> Path:
    """Export and split EfficientNet-Lite0 with the full environment."""
    say("exporting and splitting EfficientNet-Lite0")
    model, artifact = folder / "lite0.onnx", folder / "artifact"
    cli = [full, "-m", "splitserve.cli"]
    call([*cli, "export", "efficientnet_lite0", "-o", model], SPLIT_S)
    call([*cli, "split", model, "-o", artifact], SPLIT_S)
    return artifact


def copy_pictures(full: Path, folder: Path) -> Path:
    """Copy the sample pictures of the full environment's scikit-image."""
    where = "import importlib.util; print(importlib.util.find_spec('skimage').origin)"
    data = Path(call([full, "-c", where], 60).stdout.strip()).parent / "data"
    target = folder / "pictures"
    target.mkdir()
    for name in LABELS:
        shutil.copy(data / name, target / name)
    return target


@contextlib.contextmanager
def serving(serve: Sequence[str], artifact: Path, folder: Path) -> Iterator[str]:
    """Run a cloud on a free port of loopback; yields its URL."""
    words = [*serve, "--artifact", str(artifact), "--port", "0", "--log-level", "WARNING"]
    log = folder / "serve.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=stderr, cwd=ROOT)
    try:
        stdout = process.stdout
        is_there = stdout is not None and select.select([stdout], [], [], SERVE_S)[0]
        line = stdout.readline() if stdout is not None and is_there else b""
        if not line:
            raise NotProvenError(f"the cloud does not start:\n{log.read_text()[-1000:]}")
        yield str(json.loads(line)["url"])
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def run_agent(
    python: Path, artifact: Path, pictures: Path, url: str, transport: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Run the agent over the pictures; return its answers and what its process had become."""
    flags = ["--artifact", artifact, "--source", pictures, "--cloud", url, "--cut", CUT]
    more = ["--transport", transport, "--deadline-s", "20", "--log-level", "ERROR"]
    done = call([python, "-I", "-c", AGENT, ",".join(FORBIDDEN), "agent", *flags, *more], AGENT_S)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return lines, json.loads(done.stderr.splitlines()[-1])


def check_answers(lines: list[dict[str, Any]], answered_by: str) -> None:
    """Check one answer a picture, from the right side, with the right label."""
    if sorted(line["id"] for line in lines) != sorted(LABELS):
        raise NotProvenError(f"{len(lines)} answers to {len(LABELS)} pictures")
    for line in lines:
        if line["answered_by"] != answered_by:
            reason = line["fallback"] or line["error"]
            raise NotProvenError(f"{line['id']}: by the {line['answered_by']}, because {reason}")
        best = line["labels"][0]["name"]
        if best not in LABELS[line["id"]]:
            raise NotProvenError(f"{line['id']} is called {best}")


def check_facts(facts: dict[str, Any]) -> None:
    """Check what the agent's process had loaded."""
    if facts["forbidden"]:
        raise NotProvenError(f"the agent loaded {', '.join(facts['forbidden'])}")


def installed_bytes(python: Path) -> tuple[int, int]:
    """Size of everything installed, and of it without pip and setuptools."""
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    folder = Path(call([python, "-c", where], 60).stdout.strip())
    sizes = {
        path: path.lstat().st_size
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    tools = ("pip", "setuptools", "_distutils_hack", "pkg_resources")
    ours = [
        size
        for path, size in sizes.items()
        if not path.relative_to(folder).parts[0].startswith(tools)
    ]
    return sum(sizes.values()), sum(ours)


def prove(options: argparse.Namespace, folder: Path) -> None:
    """Run the whole proof."""
    python = install()
    check_absent(python)
    say(f"not importable there: {', '.join(FORBIDDEN)}")
    artifact = options.artifact or make_artifact(options.full, folder)
    pictures = copy_pictures(options.full, folder)
    serve = options.serve or [str(options.full), "-m", "splitserve.cli", "serve"]
    with serving(serve, artifact.resolve(), folder) as url:
        for transport in ("stream", "http"):
            lines, facts = run_agent(python, artifact.resolve(), pictures, url, transport)
            check_answers(lines, "cloud")
            check_facts(facts)
            say(f"cloud, {transport}: {len(lines)} pictures answered by the cloud, labels right")
    lines, facts = run_agent(python, artifact.resolve(), pictures, url, "stream")
    check_answers(lines, "edge")
    check_facts(facts)
    say(f"cloud stopped: {len(lines)} pictures answered by the edge, labels right")
    total, ours = installed_bytes(python)
    say(
        f"agent: none of them in sys.modules ({facts['modules']} modules),"
        f" {facts['rss_bytes'] / 1e6:.0f} MB resident at most,"
        f" {facts['import_s'] * 1e3:.0f} ms to import"
    )
    say(f"installed: {total / 1e6:.0f} MB, {ours / 1e6:.0f} MB of it without pip")


def main() -> int:
    """Read the flags, run the proof, say what failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--artifact", type=Path, help="split of EfficientNet-Lite0; else one is made"
    )
    parser.add_argument(
        "--full",
        type=Path,
        default=ROOT / ".venv" / "bin" / "python",
        help="interpreter of the environment that exports, splits and serves",
    )
    parser.add_argument(
        "--serve", nargs="+", help="command of the cloud; by default `FULL -m splitserve.cli serve`"
    )
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="splitserve-slim-") as name:
            prove(options, Path(name))
    except NotProvenError as error:
        sys.stderr.write(f"slim: {error}\n")
        return 1
    say("slim: proven")
    return 0


if __name__ == "__main__":
    sys.exit(main())
