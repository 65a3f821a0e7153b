"""Pictures for the demo: they come inside the wheel of scikit-image, with labels we know."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from splitserve.errors import UsageError


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


def write_views(target: Path, rounds: int, seed: int) -> list[tuple[Sample, Path]]:
    """Write different views of every sample, uncompressed, as a camera would deliver frames.

    The first round holds the whole pictures; later ones are random crops (at least 70 % of each
    side, mirrored half of the time). All have a short side of 256 pixels.
    """
    generator = np.random.default_rng(seed)
    views = []
    for turn in range(rounds):
        for sample in SAMPLES:
            with Image.open(sample_folder() / sample.file) as file:
                image = file.convert("RGB")
            if turn:
                image = _crop(image, generator)
            scale = 256 / min(image.size)
            size = (round(image.width * scale), round(image.height * scale))
            path = target / f"{turn:03d}-{sample.file.rsplit('.', 1)[0]}.bmp"
            image.resize(size, Image.Resampling.BICUBIC).save(path)
            views.append((sample, path))
    return views


def _crop(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    share = generator.uniform(0.7, 1.0)
    width, height = round(image.width * share), round(image.height * share)
    left = int(generator.integers(0, image.width - width + 1))
    top = int(generator.integers(0, image.height - height + 1))
    cropped = image.crop((left, top, left + width, top + height))
    mirror = Image.Transpose.FLIP_LEFT_RIGHT
    return cropped.transpose(mirror) if generator.random() < 0.5 else cropped
