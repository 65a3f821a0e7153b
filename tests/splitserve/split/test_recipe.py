"""A recipe in its file, in an ONNX file's metadata, and what is wrong with others."""

from pathlib import Path

import onnx
import pytest
from graphs import TINY_RECIPE, tiny_net, write_model, write_tiny
from onnx import helper

from splitserve.errors import UsageError
from splitserve.split import Recipe, embed_recipe, read_recipe, recipe_of
from splitserve.split.command_export import CHECKOUT
from splitserve.split.recipe import METADATA_KEY

PREPROCESS = """
[preprocess]
resize_short_side = 36
crop = [32, 32]
mean = [127.0, 127.0, 127.0]
std = [128.0, 128.0, 128.0]
"""


def write_recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_recipe_is_read_with_the_labels_beside_it(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("".join(f"class {i}\n" for i in range(10)))
    path = write_recipe(tmp_path, 'name = "tiny"\nlabels = "names.txt"\n' + PREPROCESS)
    assert read_recipe(path) == TINY_RECIPE


def test_recipe_may_hold_a_name_only(tmp_path: Path) -> None:
    assert read_recipe(write_recipe(tmp_path, 'name = "bare"')) == Recipe(name="bare")


def test_recipe_of_the_house_is_read() -> None:
    recipe = read_recipe(CHECKOUT / "efficientnet_lite0" / "recipe.toml")
    assert recipe.preprocess is not None
    assert recipe.preprocess.crop == (224, 224)
    assert len(recipe.labels) == 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "name: Field required"),
        ('name = "a"\nlayout = "NCHW"', "layout: Extra inputs are not permitted"),
        ('name = "a"\nlabels = "nowhere.txt"', r"nowhere\.txt: No such file"),
        ("name = ", "recipe.toml"),
        ('name = "a"' + PREPROCESS.replace("127.0]", "nan]"), "preprocess.mean.2: .*finite"),
        ('name = "a"' + PREPROCESS.replace("128.0]", "0.0]"), "std holds a zero"),
        ('name = "a"' + PREPROCESS.replace("[32, 32]", "[32, 40]"), "larger than resize_short"),
        ('name = "a"' + PREPROCESS.replace("[32, 32]", "[32, 0]"), "preprocess.crop.1"),
        ('name = "a"' + PREPROCESS.replace("36", "90000"), "preprocess.resize_short_side"),
        ('name = "a"' + PREPROCESS + 'resample = "sinc"', "preprocess.resample"),
    ],
)
def test_broken_recipe_is_refused_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_recipe(write_recipe(tmp_path, text))


def test_missing_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"recipe\.toml: No such file"):
        read_recipe(tmp_path / "recipe.toml")


def test_recipe_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(UsageError, match=r"recipe\.toml"):
        read_recipe(path)


def test_embedded_recipe_comes_back(tmp_path: Path) -> None:
    model = onnx.load(write_tiny(tmp_path / "tiny.onnx"))
    assert recipe_of(model, "fallback") == TINY_RECIPE


def test_embedding_again_replaces_the_recipe_and_keeps_other_metadata(tmp_path: Path) -> None:
    model = tiny_net()
    helper.set_model_props(model, {"author": "somebody"})
    path = write_model(model, tmp_path / "tiny.onnx")
    for name in ("first", "second"):
        embed_recipe(path, Recipe(name=name))
    stored = onnx.load(path)
    assert {entry.key for entry in stored.metadata_props} == {"author", METADATA_KEY}
    assert recipe_of(stored, "fallback").name == "second"
    assert stored.graph == model.graph


def test_model_without_recipe_gets_the_fallback_name() -> None:
    assert recipe_of(tiny_net(), "file") == Recipe(name="file")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"nom": "a"}', '{"name": 3}'])
def test_broken_embedded_recipe_is_refused(text: str) -> None:
    model = tiny_net()
    helper.set_model_props(model, {METADATA_KEY: text})
    with pytest.raises(UsageError, match=r"metadata splitserve\.recipe"):
        recipe_of(model, "file")
