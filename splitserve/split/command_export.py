"""`splitserve export`: run a recipe of models/ and write one ONNX file that describes itself."""

import subprocess
import sys
from pathlib import Path

from pydantic_settings import CliPositionalArg, SettingsConfigDict
from rich.console import Console

import splitserve
from splitserve.errors import SplitServeError, UsageError
from splitserve.settings import Settings
from splitserve.split.recipe import embed_recipe, read_recipe

TIMEOUT_S = 1800
CALLED_WRONGLY = 2
CHECKOUT = Path(splitserve.__file__).parent.parent / "models"


class Options(Settings):
    """Write a model of models/ as one ONNX file with its preprocessing and labels inside."""

    model_config = SettingsConfigDict(
        cli_prog_name="splitserve export",
        env_prefix="SPLITSERVE_EXPORT_",
        cli_shortcuts={"output": "o"},
    )

    name: CliPositionalArg[str]
    """Folder in models/, e.g. efficientnet_lite0."""
    output: Path | None = None
    """ONNX file to write; by default build/NAME.onnx."""
    weights: Path | None = None
    """Weights file, for a recipe that takes one, e.g. cifar_resnet."""
    models: Path = CHECKOUT
    """Folder of recipes; by default the checkout's."""


def run(options: Options) -> int:
    """Export and describe one model."""
    target = options.output or Path("build") / f"{options.name}.onnx"
    with Console(stderr=True).status(f"exporting {options.name}"):
        export(options.models / options.name, target, options.weights)
    Console(stderr=True).print(
        f"{target}: {target.stat().st_size / 1e6:.1f} MB\nnext: splitserve cuts {target}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return 0


def export(folder: Path, target: Path, weights: Path | None = None) -> None:
    """Run a recipe's export.py in a process of its own, then embed recipe.toml into its file.

    Args:
        folder: the recipe's folder.
        target: ONNX file to write.
        weights: file that the recipe reads its weights from, where it takes one.

    Raises:
        UsageError: no such recipe, or weights missing where it needs them or given where not.
        SplitServeError: the recipe failed; the message is its last line.
    """
    script = folder / "export.py"
    if not script.is_file():
        known = sorted(path.parent.name for path in folder.parent.glob("*/export.py"))
        raise UsageError(
            f"{folder}: no recipe here; there are: {', '.join(known) or 'none'}"
            " (--models names another folder)"
        )
    recipe = read_recipe(folder / "recipe.toml")
    words = ["--weights", str(weights)] if weights else []
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.part")
    try:
        done = subprocess.run(
            [sys.executable, str(script), *words, str(partial)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            kind = UsageError if done.returncode == CALLED_WRONGLY else SplitServeError
            raise kind(f"{script} failed ({done.returncode}): {last}")
        embed_recipe(partial, recipe)
        partial.replace(target)
    except subprocess.TimeoutExpired as error:
        raise SplitServeError(f"{script} was stopped after {TIMEOUT_S} s") from error
    finally:
        partial.unlink(missing_ok=True)
