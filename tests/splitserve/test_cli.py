"""The command table, seen from a shell."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from splitserve import __version__
from splitserve.cli import COMMANDS, find_command, main

Capture = pytest.CaptureFixture[str]


def run_python(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", script, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"], []])
def test_help_lists_every_command_on_standard_output(words: list[str], capsys: Capture) -> None:
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert [line.split("  ")[1].strip() for line in out.splitlines() if line[:2] == "  "] == list(
        COMMANDS
    )


def test_version_is_that_of_the_package(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr() == (f"splitserve {__version__}\n", "")


def test_unknown_command_is_a_wrong_call(capsys: Capture) -> None:
    assert main(["splti"]) == 2
    assert capsys.readouterr() == (
        "", "splitserve: no command 'splti'; see: splitserve --help\n",
    )  # fmt: skip


def test_name_of_a_group_alone_lists_the_group(capsys: Capture) -> None:
    assert main(["bench"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    group = [name for name in COMMANDS if name.startswith("bench ")]
    assert len(group) > 1
    assert all(f"  {name} " in err for name in group)
    assert "  split " not in err


def test_help_of_a_group_is_asked_for(capsys: Capture) -> None:
    assert main(["bench", "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "bench memory" in out


def test_help_of_a_command_shows_its_flags(capsys: Capture) -> None:
    assert main(["split", "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "usage: splitserve split" in out
    assert "--output" in out


def test_longest_command_name_wins() -> None:
    assert find_command(["bench", "memory", "--json"]) == ("bench memory", ["--json"])
    assert find_command(["split", "memory"]) == ("split", ["memory"])
    assert find_command(["bench"]) == (None, ["bench"])


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [("cuts", "onnx", "plan"), ("agent", "onnxruntime", "edge"), ("serve", "fastapi", "cloud")],
)
def test_missing_library_names_the_extra_that_brings_it(
    command: str, module: str, extra: str
) -> None:
    script = (
        "import sys\n"
        "from splitserve.cli import main\n"
        f"for name in [n for n in sys.modules if n.split('.')[0] == {module!r}]:\n"
        "    del sys.modules[name]\n"
        f"sys.modules[{module!r}] = None\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    done = run_python(script, command, "--help")
    assert done.returncode == 1
    message = f"{module} is not installed; {command} needs: pip install 'splitserve[{extra}]'"
    assert done.stderr == f"splitserve: {message}\n"


def complete(words: Sequence[str], capsys: Capture) -> list[str]:
    assert main(["--complete", *words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.split()


@pytest.mark.parametrize("words", [[""], [], ["sp"]])
def test_first_word_completes_to_commands(words: list[str], capsys: Capture) -> None:
    assert complete(words, capsys) == sorted({name.split()[0] for name in COMMANDS})


def test_second_word_of_a_group_completes_to_its_commands(capsys: Capture) -> None:
    group = sorted(name.split()[1] for name in COMMANDS if name.startswith("bench "))
    assert complete(["bench", ""], capsys) == group


@pytest.mark.parametrize("words", [["split", ""], ["split", "--output", "a"]])
def test_other_words_are_left_to_the_shell_which_offers_files(
    words: list[str], capsys: Capture
) -> None:
    assert complete(words, capsys) == []


@pytest.mark.parametrize("words", [["split", "-"], ["split", "model.onnx", "--cuts", "a", "--"]])
def test_further_words_complete_to_the_flags(words: list[str], capsys: Capture) -> None:
    assert complete(words, capsys) == [
        "--as-json", "--cuts", "--help", "--json", "--output", "--recipe", "--shape", "-h", "-o",
    ]  # fmt: skip


def test_word_after_an_unknown_command_completes_to_nothing(capsys: Capture) -> None:
    assert complete(["splti", ""], capsys) == []


def test_completion_script_completes_in_bash(tmp_path: Path, capsys: Capture) -> None:
    assert main(["completion", "bash"]) == 0
    (tmp_path / "completion.bash").write_text(capsys.readouterr().out)
    script = (
        f"source {tmp_path}/completion.bash\n"
        "COMP_WORDS=(splitserve bench me); COMP_CWORD=2; _splitserve; echo ${COMPREPLY[@]}\n"
        "COMP_WORDS=(splitserve split --c); COMP_CWORD=2; _splitserve; echo ${COMPREPLY[@]}\n"
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/bash", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PATH": path},
    )
    assert done.stdout.splitlines() == ["memory", "--cuts"]


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--complete", ""],
        ["completion"],
        ["cuts", "--help"],
        ["cuts", "MODEL"],
        ["cuts", "MODEL", "--json"],
    ],
)
def test_reader_that_goes_away_causes_no_traceback(tiny_model: Path, words: list[str]) -> None:
    words = [str(tiny_model) if word == "MODEL" else word for word in words]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "splitserve.cli", *words],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_full_disk_is_one_line(tiny_model: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "splitserve.cli", "cuts", str(tiny_model), "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
