"""`splitserve split`: cut a model into an artifact."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict
from rich.console import Console

from splitserve.output import print_document
from splitserve.settings import Names, Settings
from splitserve.split.choose import choose_cuts
from splitserve.split.extract import split_model
from splitserve.split.graph import load_graph
from splitserve.split.recipe import read_recipe, recipe_of
from splitserve.split.shapes import parse_shapes, warn_of_free_sizes


class Options(Settings):
    """Cut an ONNX model into segments and write the artifact that edge and cloud both load."""

    model_config = SettingsConfigDict(
        cli_prog_name="splitserve split",
        env_prefix="SPLITSERVE_SPLIT_",
        cli_shortcuts={"as-json": "json", "output": "o"},
    )

    model: CliPositionalArg[Path]
    """ONNX file."""
    output: Path = Path("artifact")
    """Folder to write."""
    cuts: Names = Field(default=[])
    """Names of cuts, comma-separated, tensors that cross together joined by `+`; `all` takes every
    single-tensor cut. Left out, the useful ones are found."""
    shape: Names = Field(default=[])
    """Sizes of free dimensions, `NAME=Nx3x320x320` for an input; N keeps one free."""
    recipe: Path | None = None
    """recipe.toml with preprocessing and labels; by default what the ONNX file carries."""
    as_json: bool = False
    """Print one JSON document."""


def run(options: Options) -> int:
    """Write the artifact."""
    graph = load_graph(options.model, parse_shapes(options.shape))
    warn_of_free_sizes(graph.inputs)
    with Console(stderr=True).status("searching cuts"):
        chosen = choose_cuts(graph, options.cuts)
    recipe = (
        read_recipe(options.recipe)
        if options.recipe
        else recipe_of(graph.model, options.model.stem)
    )
    artifact = split_model(graph, chosen, recipe, options.model, options.output)
    names = artifact.manifest.positions
    if options.as_json:
        result = {"artifact": str(artifact.root), "id": artifact.id.hex(), "positions": names}
        print_document(result)
        return 0
    Console(stderr=True).print(
        f"{options.output}: {len(artifact.manifest.segments)} segments, id {artifact.id.hex()}\n"
        f"positions: {', '.join(names)}\n"
        f"next: splitserve verify {options.output} --model {options.model}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if recipe.preprocess is None:
        Console(stderr=True).print(
            "no preprocessing known: the agent cannot feed pictures; name it with --recipe FILE",
            style="yellow",
        )
    return 0
