"""Reading the pictures of an audit, and what somebody said about them."""

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splitserve.artifact import Manifest, Preprocess
from splitserve.audit.budget import Budget
from splitserve.audit.laboratory import Attribute, Material
from splitserve.audit.probe import check_attribute
from splitserve.audit.subject import Floats
from splitserve.errors import UsageError
from splitserve.picture import decode_picture, list_pictures, read_labels

LABELS = "labels.csv"


@dataclass(frozen=True, slots=True)
class Folders:
    """Where an audit's pictures lie.

    Args:
        images: to attack.
        auxiliary: of the attacker's own; None for none. With labels.csv the attacker knows classes.
        attribute: CSV file with the columns file and one more, the declared attribute; None for
            none.
    """

    images: Path
    auxiliary: Path | None = None
    attribute: Path | None = None


def read_material(
    folders: Folders, manifest: Manifest, size: tuple[int, int], budget: Budget, seed: int
) -> tuple[Material, str, str]:
    """Read an audit's pictures, in a drawn order.

    Returns:
        The pictures; the sha256 of the digests of the attacked ones' files, in this order; and that
        of the auxiliary ones' with their labels.

    Raises:
        UsageError: no pictures, a model that takes none, pictures that are attacked and auxiliary
            at once, or an attribute that hardly varies.
        PictureError: a damaged one.
    """
    preprocess = manifest.preprocess
    if preprocess is None:
        raise UsageError("the audit attacks models that take pictures")
    paths = draw_pictures(folders.images, budget.pictures + budget.tuned, seed)
    whole = read_pictures(paths[: budget.pictures], preprocess, preprocess.crop)
    digests = _digests(paths)
    others: list[Path] = []
    other_digests: list[str] = []
    labels: list[int] = []
    if folders.auxiliary is not None:
        others = draw_pictures(folders.auxiliary, budget.made, seed)
        labels = _labels(folders.auxiliary, others)
        other_digests = _digests(others)
        same = set(digests) & set(other_digests)
        if same:
            raise UsageError(
                f"{len(same)} pictures of {folders.auxiliary} are attacked too; an attacker who"
                " has them needs no attack: name a folder of others"
            )
    attribute = read_declared(folders.attribute, paths) if folders.attribute else None
    if attribute:
        check_attribute(attribute.values[: len(whole)], attribute.name)
    material = Material(
        pictures=read_pictures(paths, preprocess, size),
        auxiliary=read_pictures(others, preprocess, size),
        whole=whole,
        labels=labels,
        attribute=attribute,
    )
    return material, _summary(digests), _summary([*other_digests, *map(str, labels)])


def _digests(paths: Sequence[Path]) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def _summary(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def draw_pictures(folder: Path, limit: int, seed: int) -> list[Path]:
    """Up to `limit` picture files of a folder, in a drawn order."""
    paths = list_pictures(folder)
    order = np.random.default_rng(seed).permutation(len(paths))[:limit]
    return [paths[index] for index in order]


def _labels(folder: Path, paths: Sequence[Path]) -> list[int]:
    """Classes of the pictures; none where any is missing."""
    if not (folder / LABELS).is_file():
        return []
    known = {path.name: label for path, label in read_labels(folder)}
    return [known[path.name] for path in paths] if all(p.name in known for p in paths) else []


def read_pictures(paths: Sequence[Path], preprocess: Preprocess, size: tuple[int, int]) -> Floats:
    """Read pictures as (n, 3, height, width), 0 to 1, cropped as the model does.

    Raises:
        PictureError: a damaged one.
    """
    scale = max(size) / max(preprocess.crop)
    short = max(*size, round(preprocess.resize_short_side * scale))
    small = preprocess.model_copy(update={"crop": tuple(size), "resize_short_side": short})
    pictures = np.empty((len(paths), 3, *size), np.float32)
    for row, path in zip(pictures, paths, strict=True):
        row[:] = decode_picture(path.read_bytes(), small).transpose(2, 0, 1) / np.float32(255)
    return pictures


def read_declared(path: Path, pictures: Sequence[Path]) -> Attribute:
    """Read a declared attribute.

    Args:
        path: CSV file: the column `file` and one more, whose name is the attribute's.
        pictures: each needs a row.

    Raises:
        UsageError: no such file, other columns, or pictures without a row.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: {error}") from error
    names = [name for name in (rows[0] if rows else {}) if name != "file"]
    if len(names) != 1 or "file" not in rows[0]:
        raise UsageError(f"{path}: needs the column file and one more, the attribute")
    known = {row["file"]: row[names[0]] for row in rows}
    missing = [one.name for one in pictures if not known.get(one.name)]
    if missing:
        raise UsageError(f"{path}: no {names[0]} for {missing[0]} ({len(missing)} missing)")
    return Attribute(names[0], [known[one.name] for one in pictures])
