"""What calibration reads: pictures in a drawn order, labels, stored tensors."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from splitserve.artifact import Manifest, load_artifact
from splitserve.calibrate import model_input, read_inputs
from splitserve.calibrate.inputs import INPUTS_MIN
from splitserve.errors import PictureError, UsageError
from splitserve.tensors import Array

COUNT = 24


@pytest.fixture(scope="module")
def manifest(tiny_artifact: Path) -> Manifest:
    return load_artifact(tiny_artifact).manifest


@pytest.fixture(scope="module")
def plain(manifest: Manifest) -> Manifest:
    """The same model, without a way from pictures to its input."""
    return manifest.model_copy(update={"preprocess": None})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of one grey each, so that one is known by its first value."""
    for index in range(COUNT):
        pixels = np.full((40, 48, 3), 10 * index, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index:02}.png")
    return tmp_path


def greys(pixels: Sequence[Array]) -> list[int]:
    return [int(each[0, 0, 0]) // 10 for each in pixels]


def write_labels(folder: Path, count: int) -> None:
    rows = [f"{index:02}.png,{index * 3}" for index in range(count)]
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows]))


def write_tensors(folder: Path, count: int, **change: Array) -> None:
    for index in range(count):
        image = np.full((1, 3, 32, 32), index, np.float32)
        np.savez(folder / f"{index:02}.npz", **({"image": image} | change))


def test_every_picture_is_read_once_in_a_drawn_order(folder: Path, manifest: Manifest):
    inputs = read_inputs(folder, manifest, 500, 0)
    assert len(inputs) == COUNT
    assert sorted(greys(inputs.pixels)) == list(range(COUNT))
    assert greys(inputs.pixels) != list(range(COUNT))
    assert inputs.pixels[0].shape == (32, 32, 3)
    assert (list(inputs.tensors), list(inputs.labels)) == ([], [])


def test_the_order_is_the_seeds(folder: Path, manifest: Manifest):
    first, again, other = (read_inputs(folder, manifest, 500, seed) for seed in (7, 7, 8))
    assert greys(first.pixels) == greys(again.pixels) != greys(other.pixels)
    assert first.sha256 == again.sha256 != other.sha256


def test_the_limit_takes_the_first_of_the_drawn_order(folder: Path, manifest: Manifest):
    whole, some = (read_inputs(folder, manifest, limit, 0) for limit in (500, 20))
    assert greys(some.pixels) == greys(whole.pixels)[:20]


def test_the_hash_is_of_the_contents_in_their_order(folder: Path, manifest: Manifest):
    inputs = read_inputs(folder, manifest, 500, 3)
    digest = hashlib.sha256()
    for grey in greys(inputs.pixels):
        digest.update((folder / f"{grey:02}.png").read_bytes())
    assert inputs.sha256 == digest.hexdigest()


def test_labels_stay_with_their_pictures(folder: Path, manifest: Manifest):
    write_labels(folder, 22)
    inputs = read_inputs(folder, manifest, 500, 0)
    assert len(inputs) == 22
    assert list(inputs.labels) == [3 * grey for grey in greys(inputs.pixels)]


def test_a_labelled_picture_that_is_not_there_is_named(folder: Path, manifest: Manifest):
    write_labels(folder, COUNT)
    (folder / "05.png").unlink()
    with pytest.raises(OSError, match=r"05\.png"):
        read_inputs(folder, manifest, 500, 0)


@pytest.mark.parametrize("text", ["", "file,label\n", "a,b\n1,2\n", "file,label\nx.png,cat\n"])
def test_labels_that_are_none_are_refused(folder: Path, manifest: Manifest, text: str):
    (folder / "labels.csv").write_text(text)
    with pytest.raises(UsageError, match=r"labels\.csv"):
        read_inputs(folder, manifest, 500, 0)


def test_too_few_pictures_are_refused(folder: Path, manifest: Manifest):
    for path in sorted(folder.iterdir())[INPUTS_MIN - 1 :]:
        path.unlink()
    with pytest.raises(UsageError, match="19 pictures; at least 20 are needed"):
        read_inputs(folder, manifest, 500, 0)


@pytest.mark.parametrize("name", ["nothing-here", "."])
def test_a_folder_without_pictures_is_refused(tmp_path: Path, manifest: Manifest, name: str):
    with pytest.raises(UsageError, match=r"no \.\w+"):
        read_inputs(tmp_path / name, manifest, 500, 0)


def test_a_damaged_picture_names_its_file(folder: Path, manifest: Manifest):
    path = folder / "05.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(PictureError, match=r"05\.png: "):
        read_inputs(folder, manifest, 500, 0)


def test_a_picture_becomes_the_models_input(folder: Path, manifest: Manifest):
    inputs = read_inputs(folder, manifest, 500, 0)
    tensors = model_input(inputs.pixels[0], manifest)
    assert list(tensors) == ["image"]
    assert (tensors["image"].shape, tensors["image"].dtype) == ((1, 3, 32, 32), np.float32)
    grey = 10 * greys(inputs.pixels)[0]
    np.testing.assert_allclose(tensors["image"], (grey - 127) / 128, atol=1e-6)


def test_a_model_without_preprocessing_takes_stored_tensors(tmp_path: Path, plain: Manifest):
    write_tensors(tmp_path, COUNT)
    inputs = read_inputs(tmp_path, plain, 500, 0)
    assert len(inputs) == COUNT
    assert list(inputs.pixels) == []
    assert sorted(int(each["image"][0, 0, 0, 0]) for each in inputs.tensors) == list(range(COUNT))
    with pytest.raises(UsageError, match="takes no pictures"):
        model_input(np.zeros((32, 32, 3), np.uint8), plain)


def test_stored_tensors_of_another_dtype_are_converted(tmp_path: Path, plain: Manifest):
    write_tensors(tmp_path, COUNT, image=np.ones((1, 3, 32, 32), np.float64))
    assert read_inputs(tmp_path, plain, 500, 0).tensors[0]["image"].dtype == np.float32


def test_pictures_are_no_inputs_of_a_model_without_preprocessing(folder: Path, plain: Manifest):
    with pytest.raises(UsageError, match=r"0 \.npz files with the model's inputs; at least 20"):
        read_inputs(folder, plain, 500, 0)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"no archive", b"\x93NUMPY\x01\x00v\x00", b"\x80\x04N."]
)
def test_a_damaged_file_of_tensors_names_itself(tmp_path: Path, plain: Manifest, content: bytes):
    write_tensors(tmp_path, COUNT)
    (tmp_path / "05.npz").write_bytes(content)
    with pytest.raises(UsageError, match=r"05\.npz: needs one array for each of image"):
        read_inputs(tmp_path, plain, 500, 0)


def test_a_single_array_is_no_file_of_tensors(tmp_path: Path, plain: Manifest):
    write_tensors(tmp_path, COUNT)
    with (tmp_path / "05.npz").open("wb") as file:
        np.save(file, np.ones((1, 3, 32, 32), np.float32))
    with pytest.raises(UsageError, match=r"05\.npz: needs one array for each of image"):
        read_inputs(tmp_path, plain, 500, 0)


def test_tensors_of_another_name_or_shape_are_refused(tmp_path: Path, plain: Manifest):
    write_tensors(tmp_path, COUNT)
    np.savez(tmp_path / "05.npz", picture=np.ones((1, 3, 32, 32), np.float32))
    with pytest.raises(UsageError, match=r"05\.npz: needs one array for each of image"):
        read_inputs(tmp_path, plain, 500, 0)
    np.savez(tmp_path / "05.npz", image=np.ones((1, 3, 32, 31), np.float32))
    with pytest.raises(UsageError, match=r"05\.npz: image: shape \[1, 3, 32, 31\] where"):
        read_inputs(tmp_path, plain, 500, 0)


def test_every_file_has_its_own_name(folder: Path, manifest: Manifest):
    inputs = read_inputs(folder, manifest, 500, 3)
    want = [
        hashlib.sha256((folder / f"{grey:02}.png").read_bytes()).hexdigest()[:16]
        for grey in greys(inputs.pixels)
    ]
    assert inputs.names == want


@pytest.mark.parametrize("rows", [0, 2])
def test_a_file_holds_one_input(tmp_path: Path, plain: Manifest, rows: int):
    write_tensors(tmp_path, COUNT)
    np.savez(tmp_path / "05.npz", image=np.ones((rows, 3, 32, 32), np.float32))
    with pytest.raises(UsageError, match=r"05\.npz: .*image"):
        read_inputs(tmp_path, plain, 500, 0)


def test_a_batch_that_the_model_fixes_is_taken(tmp_path: Path, plain: Manifest):
    (image,) = plain.inputs
    fixed = image.model_copy(update={"shape": (2, 3, 32, 32)})
    write_tensors(tmp_path, COUNT, image=np.ones((2, 3, 32, 32), np.float32))
    manifest = plain.model_copy(update={"inputs": (fixed,)})
    assert read_inputs(tmp_path, manifest, 500, 0).tensors[0]["image"].shape == (2, 3, 32, 32)


def test_inputs_of_several_sizes_are_refused(tmp_path: Path, plain: Manifest):
    (image,) = plain.inputs
    free = image.model_copy(update={"shape": ("batch", 3, "height", "width")})
    write_tensors(tmp_path, COUNT)
    np.savez(tmp_path / "05.npz", image=np.ones((1, 3, 32, 48), np.float32))
    manifest = plain.model_copy(update={"inputs": (free,)})
    with pytest.raises(UsageError, match=r"1x3x32x\d+ in .*npz and 1x3x32x\d+ in .*npz") as caught:
        read_inputs(tmp_path, manifest, 500, 0)
    assert "05.npz" in str(caught.value)
    assert "split --shape" in str(caught.value)
