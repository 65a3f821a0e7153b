"""Pictures for commands that read a folder."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from splitserve.audit.images import procedural


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 made-up pictures of 40 pixels a side; read only."""
    folder = tmp_path_factory.mktemp("photographs")
    for index, picture in enumerate(procedural(24, 40, 40, 9)):
        pixels = (picture.transpose(1, 2, 0) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02d}.png")
    return folder
