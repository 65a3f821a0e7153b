"""Pictures for the demo: they come inside the wheel of scikit-image, with labels we know."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splitserve.errors import UsageError
from splitserve.picture import Window, rewrite_picture

SHORT_SIDE = 256
SMALLEST_SHARE = 0.7


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture and what ImageNet's vocabulary may rightly call it."""

    file: str
    shows: str
    labels: tuple[str, ...]


# ImageNet has no motorcycle and no space rocket: their nearest classes count as right.
SAMPLES = (
    Sample("coffee.png", "a cup of coffee", ("espresso", "cup", "coffee mug")),
    Sample("camera.png", "a photographer", ("tripod", "reflex camera")),
    Sample("chelsea.png", "a cat", ("tiger cat", "tabby", "Egyptian cat")),
    Sample("motorcycle_left.png", "a motorcycle", ("moped", "motor scooter")),
    Sample("rocket.jpg", "a rocket", ("missile", "projectile")),
)


def sample_folder() -> Path:
    """Find the pictures.

    Raises:
        UsageError: scikit-image is not installed.
    """
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise UsageError(
            "the sample pictures come with scikit-image: pip install 'splitserve[demo]'"
        )
    return Path(spec.origin).parent / "data"


def write_views(
    target: Path, rounds: int, seed: int, *, whole_first: bool = True
) -> list[tuple[Sample, Path]]:
    """Write different views of every sample, uncompressed, as a camera would deliver frames.

    The first round holds the whole pictures; later ones are random crops (at least 70 % of each
    side, mirrored half of the time). All have a short side of 256 pixels.
    """
    generator = np.random.default_rng(seed)
    views = []
    for turn in range(0 if whole_first else 1, rounds if whole_first else rounds + 1):
        for sample in SAMPLES:
            path = target / f"{turn:03d}-{Path(sample.file).stem}.bmp"
            window = _random_window(generator) if turn else Window()
            rewrite_picture(sample_folder() / sample.file, path, SHORT_SIDE, window)
            views.append((sample, path))
    return views


def _random_window(generator: np.random.Generator) -> Window:
    share, left, top, coin = (float(value) for value in generator.random(4))
    return Window(1 - share * (1 - SMALLEST_SHARE), left, top, coin < 0.5)
