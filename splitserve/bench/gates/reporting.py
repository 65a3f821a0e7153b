"""Gates G: the report. The command is run as its users run it, on a small budget."""

import json
import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from splitserve.audit.command import Options, run
from splitserve.audit.document import Audit, read_audit
from splitserve.audit.policy import Beside, Policy, Rule, judge
from splitserve.audit.report import write_report
from splitserve.audit.subject import Floats
from splitserve.bench.gates.gate import Gate
from splitserve.bench.gates.network import CUTS, Bench, Tick
from splitserve.picture import write_pixels

PICTURES = 72
STRICT = 'name = "strict"\n[exposed]\nssim = 0.01\n'
LAX = 'name = "lax"\n[exposed]\n[high]\n[moderate]\n'


def measure(bench: Bench, tick: Tick) -> list[Gate]:
    """G1 to G6."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        _write(bench.pictures.test[:PICTURES], folder / "pictures")
        texts, statuses = [], []
        for policy in (STRICT, STRICT, LAX):
            (folder / "policy.toml").write_text(policy)
            statuses.append(_run(bench, folder))
            texts.append(_plain(folder / "audit.json"))
            tick()
            if policy == STRICT:
                page = (folder / "audit.html").read_text(encoding="utf-8")
                audit = read_audit(folder / "audit.json")
                text = (folder / "audit.json").read_text(encoding="utf-8")
    others = strangers(page, audit)
    free = Policy(exposed=Rule(), high=Rule(), moderate=Rule())
    attempts = [
        one.model_copy(update={"identified": one.identified.model_copy(update={"low": 0.0})})
        for one in audit.cuts[0].attempts
    ]
    level, _ = judge(attempts, audit.baselines, free, Beside(has_control=False))
    bounds = [cut.bound for cut in audit.cuts]
    says = all("no bound" in bound.reason and bound.least_error is None for bound in bounds)
    return [
        _yes("G1", "the same seed and threads give the same JSON but timing", texts[0] == texts[1]),
        _yes("G2", "audit.json fits its schema and is written again as it was",
             json.loads(audit.model_dump_json()) == json.loads(text)),
        _yes("G3", f"lines of the page that audit.json does not give: {len(others)}", not others),
        _yes("G4", f"exit status under a strict and a lax policy: {statuses[0]}, {statuses[2]}",
             statuses == [3, 3, 0]),
        Gate("G5", "lowest level without a control", str(level), level, 2),
        _yes("G6", "deterministic cuts say: no bound", says),
    ]  # fmt: skip


def _yes(number: str, what: str, is_so: bool) -> Gate:
    return Gate(number, what, "yes" if is_so else "no", float(is_so), 1)


def _write(pictures: Floats, folder: Path) -> None:
    folder.mkdir()
    for index, picture in enumerate(pictures):
        pixels = np.round(picture.transpose(1, 2, 0) * 255).astype(np.uint8)
        write_pixels(pixels, folder / f"{index:03}.png")


def _run(bench: Bench, folder: Path) -> int:
    options = Options(
        artifact=bench.artifact.root,
        images=folder / "pictures",
        cut=[CUTS["layer1"], CUTS["layer3"]],
        attack=["data-free"],
        budget="quick",
        codec="none",
        policy=folder / "policy.toml",
        max_level=4,
        seed=bench.seed,
        output=folder,
    )
    with redirect_stdout(StringIO()):
        return run(options)


def _plain(path: Path) -> dict[str, object]:
    document: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return {key: value for key, value in document.items() if key not in ("timing", "expires")}


def strangers(page: str, audit: Audit) -> list[str]:
    """Lines of the page that do not follow from the document; the gallery is left out."""
    with TemporaryDirectory() as name:
        path = Path(name) / "again.html"
        write_report(audit, np.empty((0, 3, 1, 1), np.float32), [], path, is_blurred=False)
        known = set(_lines(path.read_text(encoding="utf-8")))
    return [line for line in _lines(page) if line not in known]


def _lines(page: str) -> list[str]:
    text = re.sub(r"(?s)<(style|figure)\b.*?</\1>", "", page)
    return [line.strip() for line in text.splitlines() if line.strip()]
