"""The command table. It opens a room by name and imports none."""

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_settings import CliApp, CliSettingsSource, SettingsError

from splitserve import __version__
from splitserve.errors import SplitServeError, UsageError


@dataclass(frozen=True, slots=True)
class Command:
    """Where a command lives, what it does, and which extra it needs."""

    module: str
    summary: str
    extra: str


COMMANDS = {
    "demo": Command(
        "splitserve.bench.demo", "split a real network over an emulated link, compare", "demo"
    ),
    "export": Command("splitserve.split.command_export", "write a model as ONNX", "models"),
    "cuts": Command("splitserve.split.command_cuts", "list the cuts of an ONNX model", "plan"),
    "split": Command("splitserve.split.command", "write the artifact for chosen cuts", "plan"),
    "verify": Command(
        "splitserve.split.command_verify", "prove that the parts equal the whole", "plan"
    ),
    "calibrate": Command(
        "splitserve.calibrate.command", "fit the feature codec to an artifact's cuts", "plan"
    ),
    "profile": Command(
        "splitserve.profile.command", "measure an artifact's parts on this machine", "edge"
    ),
    "plan": Command("splitserve.plan.command", "choose the cut, or none, for a link", "plan"),
    "defend": Command(
        "splitserve.audit.command_defend", "hide features before they travel", "audit"
    ),
    "audit-leakage": Command(
        "splitserve.audit.command", "attack the features of a cut, and give a verdict", "audit"
    ),
    "inspect": Command("splitserve.inspect", "show an artifact", "edge"),
    "serve": Command("cloud_service.command", "run the tail: the cloud service", "cloud"),
    "agent": Command("edge_agent.command", "run the head: the edge agent", "edge"),
    "link": Command("splitserve.bench.command_link", "emulate a slow link (TCP relay)", "edge"),
    "bench accuracy": Command(
        "splitserve.bench.accuracy", "top-1 and top-5 on labelled pictures", "demo"
    ),
    "bench overhead": Command(
        "splitserve.bench.overhead", "what the service adds to the tail's own time", "demo"
    ),
    "bench memory": Command(
        "splitserve.bench.memory", "memory of all plans, time to change the plan", "demo"
    ),
    "bench borders": Command(
        "splitserve.bench.borders", "what segment borders cost against fused parts", "demo"
    ),
    "bench codec": Command(
        "splitserve.bench.codec", "bytes and agreement of every codec, beside JPEG and WebP", "demo"
    ),
    "bench coders": Command(
        "splitserve.bench.coders", "other coders of the same integers; speed of the codecs", "demo"
    ),
    "bench temporal": Command(
        "splitserve.bench.temporal", "bytes of moving pictures, frame by frame and streamed", "demo"
    ),
    "bench gates": Command(
        "splitserve.bench.gates.command", "the acceptance gates of the leakage audit", "demo"
    ),
    "bench published": Command(
        "splitserve.bench.published", "the audit's attacks beside published figures", "demo"
    ),
    "bench exits": Command(
        "splitserve.bench.exits", "early answers under a budget of uploads", "demo"
    ),
    "bench e2e": Command(
        "splitserve.bench.e2e.command",
        "plan, run every arm over links, see if the plan was right",
        "demo",
    ),
    "bench footprint": Command(
        "splitserve.bench.footprint", "modules, memory and start-up time of the agent", "demo"
    ),
    "bench replay": Command(
        "splitserve.bench.replay", "a link that changes: adaptive agent against fixed plans", "demo"
    ),
    "bench outage": Command(
        "splitserve.bench.outage", "what a dead, silent or slow cloud costs the agent", "demo"
    ),
    "completion": Command("splitserve.completion", "print a bash completion script", "edge"),
}

EXIT_DONE, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 failed, 2 called wrongly, 3 no."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _dispatch(words)
        sys.stdout.flush()  # a reader that has gone is noticed here, not after main
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except UsageError as error:
        return _fail(error, EXIT_USAGE)
    except (SplitServeError, OSError) as error:
        return _fail(error, EXIT_FAILED)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return status


def _dispatch(words: list[str]) -> int:
    if words[:1] == ["--complete"]:
        return _complete(words[1:])
    name, rest = find_command(words)
    if name is None:
        return _no_command(words)
    try:
        module = importlib.import_module(COMMANDS[name].module)
        return int(module.run(_parse(module.Options, rest)))
    except ModuleNotFoundError as error:
        return _missing_module(error, name)
    except SystemExit as stop:  # argparse has printed its help or its complaint
        return stop.code if isinstance(stop.code, int) else EXIT_FAILED


def find_command(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Split the words into the longest command name they begin with, and the rest."""
    for count in (2, 1):
        name = " ".join(words[:count])
        if name in COMMANDS:
            return name, list(words[count:])
    return None, list(words)


def _complete(words: list[str]) -> int:
    """Print what may stand in the place of the last word, for shell completion."""
    name, _ = find_command(words)
    depth = max(0, len(words) - 1)
    starts = [known.split() for known in COMMANDS]
    candidates = {s[depth] for s in starts if len(s) > depth and s[:depth] == words[:depth]}
    is_flag = bool(words) and words[-1].startswith("-")  # elsewhere the shell offers files
    print(" ".join(sorted(candidates) or (_flags(name) if name and is_flag else [])))
    return EXIT_DONE


def _flags(name: str) -> list[str]:
    options = importlib.import_module(COMMANDS[name].module).Options
    parser = CliSettingsSource[Any](options).root_parser
    return sorted(flag for action in parser._actions for flag in action.option_strings)  # noqa: SLF001


def _parse(options: Any, words: list[str]) -> Any:  # noqa: ANN401  # each room has its own Options
    try:
        return CliApp.run(options, cli_args=words)
    except SettingsError as error:
        raise UsageError(f"{error}; see: {options.model_config['cli_prog_name']} --help") from error
    except ValidationError as error:
        program = options.model_config["cli_prog_name"]
        lines = [
            _flag(problem["loc"]) + problem["msg"].removeprefix("Value error, ")
            for problem in error.errors(include_url=False, include_input=False)
        ]
        raise UsageError("\n".join([*lines, f"see: {program} --help"])) from error


def _flag(location: Sequence[object]) -> str:
    """Turn a field's place into `--flag: `."""
    return f"--{str(location[0]).replace('_', '-')}: " if location else ""


def _no_command(words: list[str]) -> int:
    if words[:1] == ["--version"]:
        print(f"splitserve {__version__}")
        return EXIT_DONE
    wanted = not words or words[0] == "help" or bool({"-h", "--help"} & set(words))
    stream = sys.stdout if wanted else sys.stderr
    group = [name for name in COMMANDS if words and name.startswith(f"{words[0]} ")]
    if words and not group and words[0] not in ("-h", "--help", "help"):
        return _fail(UsageError(f"no command {words[0]!r}; see: splitserve --help"), EXIT_USAGE)
    shown = {name: COMMANDS[name] for name in group or COMMANDS}
    width = max(len(name) for name in shown) + 2
    lines = ["usage: splitserve COMMAND [OPTIONS]", "", "commands:"]
    lines += [f"  {name:{width}}{command.summary}" for name, command in shown.items()]
    lines += ["", "splitserve COMMAND --help tells more; splitserve --version names this one."]
    print("\n".join(lines), file=stream)
    return EXIT_DONE if wanted else EXIT_USAGE


def _missing_module(error: ModuleNotFoundError, name: str) -> int:
    root = (error.name or "").partition(".")[0]
    if root in ("splitserve", "edge_agent", "cloud_service"):
        raise error
    extra = COMMANDS[name].extra
    text = f"{root} is not installed; {name} needs: pip install 'splitserve[{extra}]'"
    return _fail(UsageError(text), EXIT_FAILED)


def _fail(error: Exception, status: int) -> int:
    print(f"splitserve: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
