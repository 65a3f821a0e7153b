"""`splitserve audit-leakage` from outside: document, page, exit status, and going on again."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

from splitserve.artifact import load_artifact
from splitserve.audit import attacks, budget
from splitserve.audit.budget import Budget
from splitserve.audit.document import Audit, read_audit
from splitserve.audit.work import WorkFolder
from splitserve.bench.gates.reporting import strangers
from splitserve.cli import main
from splitserve.errors import UsageError
from splitserve.plan import Limits
from splitserve.plan.limits import refusal
from splitserve.plans import PlanOption

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(budget.BUDGETS, "quick", Budget("quick", 16, 32, 12, 3, 6, 2, 4, 10))


def words(artifact: Path, images: Path, output: Path, *more: str) -> list[str]:
    plain = ["audit-leakage", str(artifact), "--images", str(images), "--budget", "quick"]
    return [*plain, "--threads", "1", "-o", str(output), *more]


def without_timing(path: Path) -> dict[str, object]:
    document = json.loads(path.read_text())
    del document["timing"]
    return document


@pytest.fixture(scope="module")
def audited(
    calibrated_artifact: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    target = tmp_path_factory.mktemp("audit")
    with pytest.MonkeyPatch.context() as patch:
        small = Budget("quick", 16, 32, 12, 3, 6, 2, 4, 10)
        patch.setitem(budget.BUDGETS, "quick", small)
        assert main(words(calibrated_artifact, photographs, target)) == 0
    return target


def test_it_leaves_a_document_and_a_page_and_nothing_else(audited: Path):
    assert {path.name for path in audited.iterdir()} == {"audit.json", "audit.html"}
    audit = read_audit(audited / "audit.json")
    assert isinstance(audit, Audit)
    assert audit.cuts
    text = (audited / "audit.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|iframe)\b", text)
    assert not re.search(r"(src|href)=\"(?!#|data:)", text)
    for cut in audit.cuts:
        assert cut.cut in text
        assert cut.reasons[0].split(":")[0] in text
    assert audit.command in text.replace("&lt;", "<")


def test_the_page_shows_nothing_that_the_document_lacks(audited: Path):
    audit = read_audit(audited / "audit.json")
    page = (audited / "audit.html").read_text(encoding="utf-8")
    assert not strangers(page, audit)
    forged = page.replace("<h2>Verdict</h2>", "<h2>Verdict</h2>\n<p>All is well.</p>")
    assert strangers(forged, audit) == ["<p>All is well.</p>"]


def test_the_same_seed_gives_the_same_document(
    audited: Path, calibrated_artifact: Path, photographs: Path, tmp_path: Path
) -> None:
    assert main(words(calibrated_artifact, photographs, tmp_path)) == 0
    assert without_timing(tmp_path / "audit.json") == without_timing(audited / "audit.json")


def test_the_policy_decides_the_exit_status(
    calibrated_artifact: Path, photographs: Path, tmp_path: Path
) -> None:
    base = words(calibrated_artifact, photographs, tmp_path, "--attack", "data-free")
    strict, lax = tmp_path / "strict.toml", tmp_path / "lax.toml"
    strict.write_text('name = "strict"\n[exposed]\nssim = 0.001\n')
    lax.write_text('name = "lax"\n[exposed]\n[high]\n[moderate]\n')
    assert main([*base, "--policy", str(strict), "--max-level", "4"]) == 3
    assert main([*base, "--policy", str(lax), "--max-level", "4"]) == 0


def test_an_interrupted_audit_goes_on(
    calibrated_artifact: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = attacks.ATTACKS["optimise"]

    def interrupted(*_: object) -> list[object]:
        raise KeyboardInterrupt

    base = words(calibrated_artifact, photographs, tmp_path, "--attack", "data-free,optimise")
    monkeypatch.setitem(attacks.ATTACKS, "optimise", interrupted)
    assert main(base) == 130
    assert [path.name.split("-")[0] for path in (tmp_path / "work").iterdir()] == ["data"]
    monkeypatch.setitem(attacks.ATTACKS, "optimise", whole)
    monkeypatch.setitem(attacks.ATTACKS, "data-free", interrupted)
    assert main(base) == 0
    assert not (tmp_path / "work").exists()
    audit = read_audit(tmp_path / "audit.json")
    assert {one.attack for one in audit.cuts[0].attempts} == {"inverse, data-free", "optimisation"}


def test_levels_are_written_where_the_planner_reads_them(
    calibrated_artifact: Path, photographs: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "artifact"
    shutil.copytree(calibrated_artifact, copy)
    before = load_artifact(copy)
    name = before.manifest.cuts[0].name
    more = ("--attack", "data-free", "--cut", name, "--write")
    assert main(words(copy, photographs, tmp_path / "audit", *more)) == 0
    after = load_artifact(copy)
    assert after.id != before.id
    assert [bool(cut.leakage) for cut in after.manifest.cuts] == [
        cut.name == name for cut in after.manifest.cuts
    ]
    found = after.manifest.cuts[0].leakage
    assert found
    content = (tmp_path / "audit" / "audit.json").read_bytes()
    assert found.audit_sha256 == hashlib.sha256(content).hexdigest()
    option = PlanOption(
        name="x", cut=name, codec="step-ans", quality=found.quality, bytes_up=100, edge_s=1,
        edge_p90_s=1, cloud_s=1, cloud_p90_s=1, agreement=99,
    )  # fmt: skip
    manifest = after.manifest
    assert refusal(option, Limits(leakage=found.level), manifest) is None
    assert "over the leakage ceiling" in str(refusal(option, Limits(leakage=1), manifest))
    raw = option.model_copy(update={"codec": "raw", "quality": None})
    assert "audited behind step-ans" in str(refusal(raw, Limits(leakage=5), manifest))


def test_work_that_was_cut_short_is_done_again(tmp_path: Path):
    work = WorkFolder(tmp_path, {"a": 1})
    work.keep("data-free", [])
    assert work.load("data-free") == []
    assert WorkFolder(tmp_path, {"a": 2}).load("data-free") is None
    (path,) = tmp_path.glob("*.npz")
    path.write_bytes(path.read_bytes()[:20])
    assert work.load("data-free") is None


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--cut", "nowhere"), "no cut 'nowhere' here; there are:"),
        (("--attack", "magic"), "no attack 'magic'; there are: data-free"),
        (("--attack", "auxiliary"), "needs pictures of its own: --auxiliary DIR"),
        (("--size", "4096"), "the model's own size is"),
        (("--quality", "99.99"), "99.99"),
        (("--device", "nonsense"), "--device nonsense"),
        (("--defence", "blur"), "no defence 'blur'; there is"),
        (("--defence", "none", "--write"), "first splitserve defend"),
        (("--defence", "noise:1e999"), "more than"),
        (("--defence", "noise:9999999"), "more than"),
        (("--attack", "shadow"), "labels.csv in the folder of --auxiliary"),
    ],
)
def test_what_makes_no_sense_is_refused(
    more: tuple[str, ...], reason: str, calibrated_artifact: Path, photographs: Path,
    tmp_path: Path, capsys: Capture,
) -> None:  # fmt: skip
    assert main(words(calibrated_artifact, photographs, tmp_path, *more)) == 2
    assert reason in capsys.readouterr().err


def test_pictures_that_are_attacked_are_no_auxiliary_ones(
    calibrated_artifact: Path, photographs: Path, tmp_path: Path, capsys: Capture
) -> None:
    base = words(calibrated_artifact, photographs, tmp_path, "--auxiliary", str(photographs))
    assert main(base) == 2
    assert "are attacked too" in capsys.readouterr().err


def test_a_document_of_another_kind_is_refused(tmp_path: Path):
    path = tmp_path / "audit.json"
    path.write_text("{}")
    with pytest.raises(UsageError, match=r"make one with: splitserve audit-leakage"):
        read_audit(path)
