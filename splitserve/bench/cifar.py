"""CIFAR-10 pictures from an archive."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from splitserve.calibrate.inputs import BROKEN_NPZ
from splitserve.errors import UsageError

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

SIDE = 32


def read_pictures(path: Path) -> tuple[Floats, Labels]:
    """Pictures, (n, 3, 32, 32), 0 to 1, and their classes, (n,).

    Args:
        path: .npz with `images` (n, 32, 32, 3), uint8, and `labels` (n,).

    Raises:
        UsageError: another file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = file["images"], file["labels"]
    except BROKEN_NPZ as error:
        raise UsageError(f"{path}: {error}; an .npz of images and labels is needed") from error
    if images.shape[1:] != (SIDE, SIDE, 3) or labels.shape != images.shape[:1]:
        raise UsageError(f"{path}: images {images.shape}, labels {labels.shape}")
    pictures = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32) / np.float32(255)
    return pictures, labels.astype(np.int64)
