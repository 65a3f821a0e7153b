"""Gates G: the report. The command is run as its users run it, on a small budget."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from splitserve.audit.command import Options, run
from splitserve.audit.document import Audit, read_audit
from splitserve.audit.policy import Beside, Policy, Rule, judge
from splitserve.audit.report import STANDARDS
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
        _yes("G3", f"figures on the page that audit.json lacks: {len(others)}", not others),
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
    """Figures in the page's text that are no rounded figure of the document."""
    text = re.sub(r"(?s)<(style|svg)\b.*?</\1>|<[^>]*>", " ", page)
    known = list(_numbers(audit.model_dump(mode="json")))
    words = [*_strings(audit.model_dump(mode="json")), *(text for _, text in STANDARDS)]
    return [
        shown
        for shown in re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", text)
        if not any(shown in word for word in words) and not _is_known(shown, known)
    ]


def _is_known(shown: str, known: Sequence[float]) -> bool:
    digits = len(shown.partition(".")[2])
    return any(
        f"{abs(value) * scale:.{digits}f}" == shown for value in known for scale in (1, 100, 1e-3)
    )


def _numbers(value: object) -> Iterator[float]:
    if isinstance(value, bool | str):
        return
    if isinstance(value, int | float):
        yield float(value)
    for part in _parts(value):
        yield from _numbers(part)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for part in _parts(value):
        yield from _strings(part)


def _parts(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()
