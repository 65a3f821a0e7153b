"""Pictures that nobody took: what a data-free attacker learns to invert with.

Dead leaves (discs, boxes and triangles of one colour that cover one another) over 1/f noise, some
with texture, some blurred. Their statistics come close to those of photographs (Lee, Mumford and
Huang, IJCV 2001).
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Floats = npt.NDArray[np.float32]

LEAVES = 40
SHARPEST, SMOOTHEST = 0.6, 2.2  # exponents of the spectrum's fall
SMALLEST, LARGEST = 0.03, 0.5  # radii, of the shorter side
BLUR = 1.2
CONTRAST = 0.35
CHROMA = 0.15  # how far colours stray from grey


def procedural(count: int, height: int, width: int, seed: int) -> Floats:
    """Make pictures, (count, 3, height, width), 0 to 1."""
    made = np.empty((count, 3, height, width), np.float32)
    for index, picture in enumerate(_pictures(count, height, width, np.random.default_rng(seed))):
        made[index] = picture
    return made


def gaussian(count: int, height: int, width: int, seed: int) -> Floats:
    """Grey with Gaussian noise, for the ablation; (count, 3, height, width), 0 to 1."""
    noise = np.random.default_rng(seed).normal(0.5, 0.25, (count, 3, height, width))
    return np.clip(noise, 0, 1).astype(np.float32)


def _pictures(
    count: int, height: int, width: int, generator: np.random.Generator
) -> Iterator[Floats]:
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    for _ in range(count):
        picture = coloured_noise(height, width, generator)
        _drop_leaves(picture, rows, columns, generator)
        if generator.random() < 0.5:
            sigma = generator.uniform(0.2, BLUR) * min(height, width) / 32
            picture = ndimage.gaussian_filter(picture, (0, sigma, sigma))
        yield np.clip(picture, 0, 1).astype(np.float32)


def coloured_noise(height: int, width: int, generator: np.random.Generator) -> Floats:
    """One picture whose spectrum falls with a random power of the frequency, in random colours."""
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    radius = np.sqrt(fy**2 + fx**2)
    radius[0, 0] = 1 / max(height, width)
    spectrum = generator.normal(size=(3, *radius.shape)) + 1j * generator.normal(
        size=(3, *radius.shape)
    )
    noise = np.fft.irfft2(
        spectrum / radius ** generator.uniform(SHARPEST, SMOOTHEST), (height, width)
    )
    noise = noise / (noise.std(axis=(1, 2), keepdims=True) + 1e-9)
    mix = CHROMA * np.eye(3) + np.ones((3, 3)) / 3  # channels move together, as in photographs
    noise = np.tensordot(mix, noise, 1)
    noise = noise / (noise.std() + 1e-9)
    spread = generator.uniform(0.05, CONTRAST)
    level = generator.uniform(0.2, 0.8) + generator.normal(0, CHROMA, (3, 1, 1))
    return np.asarray(level + spread * noise, np.float32)


def _drop_leaves(
    picture: Floats, rows: Floats, columns: Floats, generator: np.random.Generator
) -> None:
    height, width = rows.shape
    side = min(height, width)
    for _ in range(generator.integers(0, LEAVES)):
        radius = side * SMALLEST * (LARGEST / SMALLEST) ** (generator.random() ** 2)
        y, x = rows - generator.uniform(0, height), columns - generator.uniform(0, width)
        angle = generator.uniform(0, np.pi)
        u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        v = v * generator.uniform(0.5, 2)
        inside = _shape(int(generator.integers(3)), u / radius, v / radius)
        colour = (generator.uniform(0, 1) + generator.normal(0, CHROMA, 3)).astype(np.float32)
        shade = generator.uniform(-0.3, 0.3) * (u / radius)
        picture[:, inside] = colour[:, None] + shade[inside].astype(np.float32)


def _shape(kind: int, u: Floats, v: Floats) -> npt.NDArray[np.bool_]:
    if kind == 0:
        return np.asarray(u * u + v * v < 1)
    if kind == 1:
        return np.asarray((np.abs(u) < 1) & (np.abs(v) < 1))
    return np.asarray((v > -0.5) & (v < 1 - 2 * np.abs(u)))
