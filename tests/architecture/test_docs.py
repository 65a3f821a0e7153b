"""Every command and every file that the documents show is real."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from splitserve.bench.process import running
from splitserve.bench.samples import write_views
from splitserve.cli import COMMANDS
from splitserve.split import read_recipe

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def shell_lines(path):
    joined = "\n".join(blocks(path, "sh")).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def targets():
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_make_target_and_command_in_a_document_exists(path):
    text = path.read_text()
    for target in re.findall(r"`make ([a-z-]+)", text):
        assert target in targets()
    for words in re.findall(r"`splitserve ([a-z -]+?)[`A-Z/.]", text):
        name = words.split(" -")[0].strip()
        assert any(name.startswith(known) or known.startswith(name) for known in COMMANDS), words


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_between_documents_leads_somewhere(path):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_json_in_the_readme_is_json():
    for block in blocks(ROOT / "README.md", "json"):
        assert json.loads(block)["answered_by"] == "cloud"


def test_recipe_in_the_readme_is_a_recipe(tmp_path):
    (block,) = blocks(ROOT / "README.md", "toml")
    (tmp_path / "labels.txt").write_text("one\ntwo\n")
    (tmp_path / "recipe.toml").write_text(block)
    recipe = read_recipe(tmp_path / "recipe.toml")
    assert recipe.labels == ("one", "two")
    assert recipe.preprocess.crop == (224, 224)


def test_every_command_of_the_readme_runs_as_written(tmp_path, lite0, monkeypatch):
    """In order, in one folder, as a reader would; `make` and `export` run in tests of their own."""
    shutil.copy(lite0, tmp_path / "model.onnx")
    (tmp_path / "pictures").mkdir()
    views = write_views(tmp_path / "pictures", rounds=4, seed=0)
    monkeypatch.setenv("SPLITSERVE_CALIBRATE_FLOORS", "90")  # 99 of 10 pictures takes longer
    lines = [shlex.split(line) for line in shell_lines(ROOT / "README.md")]
    commands = [words[1:] for words in lines if words[0] == "splitserve"]
    assert {words[0] for words in lines} == {"make", "splitserve"}
    (serve,) = (words for words in commands if words[0] == "serve")
    for words in commands:
        if words[0] not in ("serve", "agent", "export"):
            run(words, tmp_path)
    (agent,) = (words for words in commands if words[0] == "agent")
    serve[serve.index("--port") + 1] = "0"
    serve[serve.index("--artifact") + 1] = str(tmp_path / "artifact")
    with running(*serve) as service:
        agent[agent.index("--cloud") + 1] = service.hear(60)["url"]
        answers = [json.loads(line) for line in run(agent, tmp_path).splitlines()]
    assert [answer["answered_by"] for answer in answers] == ["cloud"] * len(views)


def run(words, folder):
    done = subprocess.run(
        [sys.executable, "-m", "splitserve.cli", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout
