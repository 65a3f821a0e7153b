"""What an ONNX file does not say about itself: how a picture becomes its input, and its labels.

A recipe is a TOML file; `splitserve export` embeds it into the ONNX file's metadata, so that one
file travels, and `splitserve split --recipe FILE` supplies it for any other model.
"""

import tomllib
from pathlib import Path

import onnx
from pydantic import BaseModel, ConfigDict, ValidationError

from splitserve.artifact import Preprocess
from splitserve.errors import UsageError

METADATA_KEY = "splitserve.recipe"


class Recipe(BaseModel):
    """Facts about a model that its graph does not hold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    preprocess: Preprocess | None = None
    labels: tuple[str, ...] = ()


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.toml; `labels` there names a text file beside it, one class a line.

    Raises:
        UsageError: a missing file or field, or an unknown field.
    """
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
        if "labels" in fields:
            text = (path.parent / str(fields["labels"])).read_text(encoding="utf-8")
            fields["labels"] = text.splitlines()
        return Recipe.model_validate(fields)
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from error
    except ValidationError as error:
        raise UsageError(f"{path}: {_first(error)}") from error


def recipe_of(model: onnx.ModelProto, fallback_name: str) -> Recipe:
    """Return the recipe embedded in a model, or one that holds only a name.

    Raises:
        UsageError: the embedded recipe is broken.
    """
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            try:
                return Recipe.model_validate_json(entry.value)
            except ValidationError as error:
                raise UsageError(f"the model's metadata {METADATA_KEY}: {_first(error)}") from error
    return Recipe(name=fallback_name)


def embed_recipe(path: Path, recipe: Recipe) -> None:
    """Store a recipe in an ONNX file's metadata."""
    model = onnx.load(str(path))
    properties = {entry.key: entry.value for entry in model.metadata_props}
    properties[METADATA_KEY] = recipe.model_dump_json()
    onnx.helper.set_model_props(model, properties)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'recipe'}: {first['msg']}"
