"""What an artifact's folder may hold, and what loading one refuses."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitserve.artifact import (
    MANIFEST_LIMIT_BYTES,
    Artifact,
    Manifest,
    load_artifact,
    write_artifact,
)
from splitserve.errors import ArtifactError, IntegrityError, UsageError
from splitserve.runtime import RuntimeOptions, open_chain

Fields = dict[str, Any]
STEM = {"name": "stem", "dtype": "float32", "shape": ["batch", 1]}


@pytest.fixture
def folder(tiny_artifact: Path, tmp_path: Path) -> Path:
    """A copy of the tiny artifact that a test may break."""
    target = tmp_path / "artifact"
    shutil.copytree(tiny_artifact, target)
    return target


def read(folder: Path) -> Fields:
    fields: Fields = json.loads((folder / "manifest.json").read_text())
    return fields


def write(folder: Path, fields: Fields) -> None:
    (folder / "manifest.json").write_text(json.dumps(fields))


def test_written_artifact_is_read_back(tmp_path: Path, tiny_artifact: Path) -> None:
    original = load_artifact(tiny_artifact)
    files = {
        path.name: path.read_bytes() for path in tiny_artifact.iterdir() if path.suffix == ".onnx"
    }
    written = write_artifact(tmp_path / "new" / "artifact", original.manifest, files)
    assert load_artifact(written.root) == written
    assert written.id == original.id
    assert {path.name for path in written.root.iterdir()} == {"manifest.json", *files}
    for index, segment in enumerate(original.manifest.segments):
        assert written.read_segment(index) == files[segment.file]


class Failing(dict[str, bytes]):
    """Files of which the third cannot be had."""

    def items(self) -> Any:
        for turn, item in enumerate(super().items()):
            if turn == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), item[0])
            yield item


def assert_whole(artifact: Artifact) -> None:
    """What was there before loads and verifies, and nothing else lies beside it."""
    again = load_artifact(artifact.root)
    assert again == artifact
    for one in again.manifest.files:
        again.read_file(one)
    names = {one.file for one in again.manifest.files} | {"manifest.json"}
    assert {path.name for path in again.root.iterdir()} == names


def test_a_failure_in_the_middle_leaves_what_was_there(folder: Path) -> None:
    before = load_artifact(folder)
    contents = {one.file: before.read_file(one) + bytes(9) for one in before.manifest.files}
    with pytest.raises(ArtifactError, match=r"cannot write s\d\.onnx: No space left"):
        write_artifact(folder, before.manifest, Failing(contents))
    assert_whole(before)


FULL_DISK = """
import pathlib, resource, signal, sys
from splitserve.artifact import load_artifact, write_artifact
from splitserve.errors import ArtifactError
artifact = load_artifact(pathlib.Path(sys.argv[1]))
manifest = artifact.manifest.model_copy(update={"labels": ("x" * 1_000_000,)})
files = {one.file: artifact.read_file(one) + bytes(9) for one in manifest.files}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    write_artifact(artifact.root, manifest, files)
except ArtifactError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("name", "limit"), [("s0.onnx", 100), ("manifest.json", 900_000)], ids=["first", "last"]
)
def test_a_file_that_does_not_fit_is_named_and_leaves_what_was_there(
    folder: Path, name: str, limit: int
) -> None:
    """A child process may write no file beyond a limit, as on a full disk."""
    before = load_artifact(folder)
    words = [sys.executable, "-c", FULL_DISK, str(folder), name, str(limit)]
    run = subprocess.run(words, capture_output=True, text=True, check=True)
    assert run.stdout == f"cannot write {folder}/.{name}.part: {os.strerror(errno.EFBIG)}\n"
    assert_whole(before)


def test_what_is_there_already_is_not_written_again(folder: Path) -> None:
    before = load_artifact(folder)
    contents = {one.file: before.read_file(one) for one in before.manifest.files}
    inodes = {name: (folder / name).stat().st_ino for name in contents}
    manifest = before.manifest.model_copy(update={"labels": ("other",)})
    write_artifact(folder, manifest, contents)
    assert {name: (folder / name).stat().st_ino for name in contents} == inodes
    assert load_artifact(folder).manifest == manifest


def test_files_of_the_old_manifest_alone_are_removed(folder: Path) -> None:
    before = load_artifact(folder)
    (folder / "notes.txt").write_text("mine")
    segments = tuple(
        one.model_copy(update={"file": f"new-{one.file}"}) for one in before.manifest.segments
    )
    cuts = tuple(cut.model_copy(update={"fused_head": None}) for cut in before.manifest.cuts)
    manifest = before.manifest.model_copy(update={"segments": segments, "cuts": cuts})
    contents = {f"new-{one.file}": before.read_file(one) for one in before.manifest.segments}
    written = write_artifact(folder, manifest, contents)
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "notes.txt", *contents}
    for index in range(len(segments)):
        written.read_segment(index)


def test_a_folder_that_cannot_be_made_is_named(folder: Path, tmp_path: Path) -> None:
    before = load_artifact(folder)
    (tmp_path / "file").write_bytes(b"")
    target = tmp_path / "file" / "artifact"
    with pytest.raises(ArtifactError, match=f"cannot write {target}: Not a directory"):
        write_artifact(target, before.manifest, {})


def test_id_is_the_hash_of_the_manifest(folder: Path) -> None:
    content = (folder / "manifest.json").read_bytes()
    assert load_artifact(folder).id == hashlib.sha256(content).digest()[:16]


@pytest.mark.parametrize("ending", [b"\n", b" "])
def test_id_changes_with_any_byte_of_the_manifest(folder: Path, ending: bytes) -> None:
    before = load_artifact(folder)
    with (folder / "manifest.json").open("ab") as file:
        file.write(ending)
    after = load_artifact(folder)
    assert after.manifest == before.manifest
    assert after.id != before.id


def test_positions_are_the_cuts_between_the_two_ends(folder: Path) -> None:
    manifest = load_artifact(folder).manifest
    assert manifest.positions == ("input", "stem", "stage", "mean", "output")
    assert [manifest.position(name) for name in manifest.positions] == [0, 1, 2, 3, 4]
    assert manifest.egress(0) == manifest.inputs
    assert [spec.name for spec in manifest.egress(2)] == ["stage"]
    assert manifest.egress(4) == manifest.outputs
    with pytest.raises(UsageError, match="no cut 'block' here; there are: input, stem, stage"):
        manifest.position("block")


def test_fused_head_is_read_where_there_is_one(lite0_artifact: Path) -> None:
    artifact = load_artifact(lite0_artifact)
    cuts = artifact.manifest.cuts
    heads = [artifact.read_fused_head(position) for position in range(len(cuts) + 2)]
    assert [head is not None for head in heads[1:-1]] == [
        cut.fused_head is not None for cut in cuts
    ]
    assert heads[0] is None
    assert heads[-1] is None


def change(fields: Fields, place: str, value: object) -> None:
    *way, last = (int(part) if part.isdigit() else part for part in place.split("."))
    target: Any = fields
    for part in way:
        target = target[part]
    target[last] = value


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("schema_version", 2, "schema_version: Input should be 1"),
        ("schema_version", "1", "schema_version"),
        ("signature", "", "signature: Extra inputs are not permitted"),
        ("segments.0.sha1", "", "segments.0.sha1: Extra inputs are not permitted"),
        ("segments.0.file", "../s0.onnx", "segments.0.file: String should match"),
        ("segments.0.file", "/etc/passwd", "segments.0.file"),
        ("segments.0.file", "a/s0.onnx", "segments.0.file"),
        ("segments.0.file", "a\\s0.onnx", "segments.0.file"),
        ("segments.0.file", "C:s0.onnx", "segments.0.file"),
        ("segments.0.file", "..", "segments.0.file"),
        ("segments.0.file", ".hidden", "segments.0.file"),
        ("segments.0.file", "", "segments.0.file"),
        ("segments.0.file", "s0.onnx\n", "segments.0.file"),
        ("segments.0.file", "s0\0.onnx", "segments.0.file"),
        ("segments.0.sha256", "0" * 63, "segments.0.sha256"),
        ("segments.0.sha256", "G" * 64, "segments.0.sha256"),
        ("segments.0.bytes", 0, "segments.0.bytes"),
        ("segments.0.bytes", -1, "segments.0.bytes"),
        ("segments.0.macs", -1, "segments.0.macs"),
        ("segments", [], "segments"),
        ("cuts", [], "4 segments do not fit 0 cuts"),
        ("cuts.0.name", "stage", "cut names repeat or are reserved"),
        ("cuts.0.name", "input", "cut names repeat or are reserved"),
        ("cuts.0.name", "output", "cut names repeat or are reserved"),
        ("cuts.0.egress", [], "cuts.0.egress"),
        ("cuts.0.macs_share", 1.5, "cuts.0.macs_share"),
        ("cuts.0.macs_share", float("nan"), "cuts.0.macs_share"),
        ("cuts.0.egress.0.dtype", "object", "cuts.0.egress.0.dtype: .*no dtype 'object'"),
        ("cuts.0.egress.0.dtype", "", "cuts.0.egress.0.dtype"),
        ("cuts.0.egress.0.shape", [-1, 8], "cuts.0.egress.0.shape.0"),
        ("cuts.0.egress.0.shape", [0, 8], "cuts.0.egress.0.shape.0"),
        ("cuts.0.egress.0.shape", ["", 8], "cuts.0.egress.0.shape.0"),
        ("cuts.0.egress.0.name", "", "cuts.0.egress.0.name"),
        ("cuts.1.egress", [STEM, STEM], "a tensor crosses at stage twice"),
        ("cuts.1.egress", [STEM], "stem is another tensor at stage than before it"),
        ("inputs", [], "inputs"),
        ("outputs", [], "outputs"),
        ("preprocess.crop", [48, 48], "larger than resize_short_side"),
        ("preprocess.crop", [16, 16], r"image: shape \[1, 3, 16, 16\]"),
        ("preprocess.layout", "NHWC", r"image: shape \[1, 32, 32, 3\]"),
        ("preprocess.std", [1.0, 0.0, 1.0], "std holds a zero"),
        ("preprocess.std", [1.0, float("inf"), 1.0], "preprocess.std.1"),
        ("preprocess.mean", ["NaN", 0.0, 0.0], "preprocess.mean.0"),
        ("preprocess.mean", [0.0, 0.0], "preprocess.mean"),
        ("inputs.0.dtype", "uint8", "image: float32 where uint8 is expected"),
        ("model.sha256", "", "model.sha256"),
    ],
)
def test_manifest_that_contradicts_the_format_is_refused_with_the_place(
    folder: Path, place: str, value: object, message: str
) -> None:
    fields = read(folder)
    change(fields, place, value)
    write(folder, fields)
    with pytest.raises(ArtifactError, match=message) as caught:
        load_artifact(folder)
    assert str(caught.value).startswith(f"{folder / 'manifest.json'}: ")


@pytest.mark.parametrize("field", ["model", "inputs", "outputs", "segments", "cuts"])
def test_manifest_without_a_field_is_refused(folder: Path, field: str) -> None:
    fields = read(folder)
    del fields[field]
    write(folder, fields)
    with pytest.raises(ArtifactError, match=f"{field}: Field required"):
        load_artifact(folder)


@given(st.data())
def test_noise_in_the_manifest_raises_our_error_only(
    tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray((tiny_artifact / "manifest.json").read_bytes())
    start = data.draw(st.integers(0, len(content) - 1))
    content[start : start + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    folder = tmp_path_factory.mktemp("noise")
    (folder / "manifest.json").write_bytes(content)
    try:
        assert isinstance(load_artifact(folder), Artifact)
    except ArtifactError:
        return


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"[" * 100_000, b"\xff\xfe", b"1e999"])
def test_manifest_that_is_none_is_refused(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(ArtifactError):
        load_artifact(folder)


def test_oversized_manifest_is_refused_before_it_is_parsed(folder: Path) -> None:
    with (folder / "manifest.json").open("ab") as file:
        file.truncate(MANIFEST_LIMIT_BYTES + 1)
    with pytest.raises(ArtifactError, match=f"over the limit of {MANIFEST_LIMIT_BYTES} bytes"):
        load_artifact(folder)


def test_folder_without_manifest_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"No such file.*splitserve split MODEL\.onnx -o"):
        load_artifact(tmp_path / "nowhere")


def tamper(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def become_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


NOT_A_FILE = [become_folder, become_pipe]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (tamper, "content differs from the sha256 in the manifest"),
        (truncate, r"\d+ bytes where the manifest says \d+"),
        (grow, r"\d+ bytes where the manifest says \d+"),
        (Path.unlink, os.strerror(errno.ENOENT)),
        (link_to_nothing, os.strerror(errno.ENOENT)),
        (link_to_itself, os.strerror(errno.ELOOP)),
        *((break_it, "not a regular file") for break_it in NOT_A_FILE),
    ],
)
@pytest.mark.parametrize("index", [0, 3])
def test_segment_that_is_not_what_the_manifest_says_is_refused(
    folder: Path, index: int, break_it: Callable[[Path], None], message: str
) -> None:
    break_it(folder / f"s{index}.onnx")
    artifact = load_artifact(folder)
    with pytest.raises(IntegrityError, match=rf"s{index}\.onnx: {message}"):
        artifact.read_segment(index)
    with pytest.raises(IntegrityError):
        open_chain(artifact, RuntimeOptions(threads=1))


@pytest.mark.parametrize("break_it", NOT_A_FILE)
def test_manifest_that_is_no_regular_file_is_refused(
    folder: Path, break_it: Callable[[Path], None]
) -> None:
    break_it(folder / "manifest.json")
    with pytest.raises(ArtifactError, match=r"manifest\.json: not a regular file"):
        load_artifact(folder)


def test_links_to_the_right_content_are_followed(folder: Path) -> None:
    for name in ("manifest.json", "s0.onnx"):
        (folder / name).rename(folder / f"real-{name}")
        (folder / name).symlink_to(f"real-{name}")
    assert load_artifact(folder).read_segment(0) == (folder / "real-s0.onnx").read_bytes()


def test_manifest_cannot_be_changed_once_loaded(folder: Path) -> None:
    manifest = load_artifact(folder).manifest
    with pytest.raises(ValueError, match="frozen"):
        manifest.labels = ()  # type: ignore[misc]


def test_manifest_survives_its_own_json(folder: Path) -> None:
    manifest = load_artifact(folder).manifest
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
