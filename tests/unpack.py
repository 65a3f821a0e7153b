"""Write an archive of labelled pictures as a folder of PNG files with labels.csv.

Usage: python tests/unpack.py FILE.npz FOLDER

FILE.npz holds `images` (n, height, width, 3), uint8, and `labels` (n,).
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image


def unpack(archive: Path, folder: Path) -> int:
    """Return the number of pictures written."""
    folder.mkdir(parents=True, exist_ok=True)
    with np.load(archive) as stored, (folder / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "label"])
        images, labels = stored["images"], stored["labels"]
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            name = f"{number:05}.png"
            Image.fromarray(image).save(folder / name)
            rows.writerow([name, int(label)])
    return len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    print(unpack(options.archive, options.folder), "pictures")  # noqa: T201


if __name__ == "__main__":
    main()
