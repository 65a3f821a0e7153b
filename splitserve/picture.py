"""The one door to Pillow: files to pixels, pixels to the model's input, pixels to JPEG or WebP."""

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from splitserve.artifact import Preprocess
from splitserve.errors import PictureError, UsageError
from splitserve.tensors import FloatArray

Pixels = npt.NDArray[np.uint8]
PictureFormat = Literal["JPEG", "WEBP"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
READABLE = ("JPEG", "PNG", "WEBP", "BMP")
PIXEL_LIMIT = 89_000_000  # just under the size from which Pillow warns by itself

# What undoes each EXIF orientation; ImageOps.exif_transpose fails on unrelated damaged tags.
ORIENTATION_TAG = 0x0112
UPRIGHT: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# WebP's default effort takes three times as long for a fifth fewer bytes (measured at 224 pixels).
ENCODER_OPTIONS: dict[PictureFormat, dict[str, int]] = {"JPEG": {}, "WEBP": {"method": 0}}

RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def list_pictures(folder: Path) -> list[Path]:
    """List a folder's pictures by name.

    Raises:
        UsageError: there is none.
    """
    paths = [
        path
        for path in sorted(folder.glob("*"))
        if path.suffix.lower() in SUFFIXES and path.is_file()
    ]
    if not paths:
        raise UsageError(f"{folder}: no {', '.join(SUFFIXES)} files here")
    return paths


def read_labels(folder: Path) -> list[tuple[Path, int]]:
    """Read labels.csv.

    Raises:
        UsageError: no such file, or a line without file and label.
    """
    path = folder / "labels.csv"
    try:
        with path.open(newline="") as file:
            rows = [(folder / row["file"], int(row["label"])) for row in csv.DictReader(file)]
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: needs the columns file and label: {error}") from error
    if not rows:
        raise UsageError(f"{path}: no picture in it")
    return rows


def decode_picture(content: bytes, preprocess: Preprocess, limit: int = PIXEL_LIMIT) -> Pixels:
    """Decode a picture, resize and crop it as the model expects.

    Args:
        content: a JPEG, PNG, WebP or BMP file.
        preprocess: geometry from the manifest.
        limit: most pixels the file may claim; checked before they are decoded.

    Returns:
        (height, width, 3), uint8, RGB.

    Raises:
        PictureError: no picture, a truncated one, or one over the limit.
    """
    image = _open(content, READABLE)
    width, height = image.size
    if width * height > limit:
        raise PictureError(f"a picture of {width} x {height} pixels is over the limit of {limit}")
    try:
        # A JPEG can be decoded at half or quarter size; twice the target keeps bicubic honest.
        target = 2 * preprocess.resize_short_side
        image.draft("RGB", (target * width // min(width, height) + 1, target + 1))
        upright = _to_rgb(_turn_upright(image))
    except Exception as error:  # Pillow raises what it meets, and may quote the file
        raise PictureError(f"the picture is damaged ({type(error).__name__})") from error
    return _resize_and_crop(upright, preprocess)


def _open(content: bytes, formats: tuple[str, ...]) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=formats)
    except UnidentifiedImageError as error:
        raise PictureError(f"not a {', '.join(formats)} file") from error
    except Exception as error:  # Pillow raises what it meets, and may quote the file
        raise PictureError(f"the picture is damaged ({type(error).__name__})") from error


def _turn_upright(image: Image.Image) -> Image.Image:
    method = UPRIGHT.get(image.getexif().get(ORIENTATION_TAG))
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow would clip it to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "transparency" in image.info:  # straight to RGB, Pillow warns
        image = image.convert("RGBA")
    return image.convert("RGB")


def _resize_and_crop(image: Image.Image, preprocess: Preprocess) -> Pixels:
    short = preprocess.resize_short_side
    scale = short / min(image.size)
    crop_height, crop_width = preprocess.crop
    left = round((image.width * scale - crop_width) / 2)
    top = round((image.height * scale - crop_height) / 2)
    if scale == 1:  # a frame of the right size: nothing to resize
        return np.asarray(image.crop((left, top, left + crop_width, top + crop_height)))
    # Only the cropped box is resized: the same pixels, and cheaper on long pictures.
    box = (
        max(0.0, left / scale),
        max(0.0, top / scale),
        min(image.width, (left + crop_width) / scale),
        min(image.height, (top + crop_height) / scale),
    )
    cropped = image.resize((crop_width, crop_height), RESAMPLE[preprocess.resample], box=box)
    return np.asarray(cropped, dtype=np.uint8)


def read_picture(path: Path, preprocess: Preprocess) -> FloatArray:
    """Read a picture file as the model's input.

    Raises:
        PictureError: not a picture; the message names the file.
    """
    try:
        return normalise(decode_picture(path.read_bytes(), preprocess), preprocess)
    except OSError as error:
        raise PictureError(f"{path}: {error.strerror}") from error
    except PictureError as error:
        raise PictureError(f"{path}: {error}") from error


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a picture, in shares of its sides.

    Args:
        share: size, 0 to 1, of either side.
        left: place between the left edge (0) and the right one (1).
        top: place between the upper edge (0) and the lower one (1).
        is_mirrored: whether left and right change places.
    """

    share: float = 1.0
    left: float = 0.0
    top: float = 0.0
    is_mirrored: bool = False


def rewrite_picture(source: Path, target: Path, short_side: int, window: Window) -> None:
    """Write a window of a picture, resized, in the format of the target's suffix.

    Raises:
        PictureError: the source is no picture.
    """
    image = _to_rgb(_open(source.read_bytes(), READABLE))
    width, height = round(image.width * window.share), round(image.height * window.share)
    left, top = (
        round((image.width - width) * window.left),
        round((image.height - height) * window.top),
    )
    scale = short_side / min(width, height)
    size = (round(width * scale), round(height * scale))
    view = image.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    if window.is_mirrored:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    view.save(target)


def cut_views(
    path: Path, views: Iterable[tuple[float, float]], preprocess: Preprocess
) -> Iterator[Pixels]:
    """Look at a picture through a window that may move by parts of a pixel.

    Args:
        path: the picture.
        views: for each, the window's height as a share of the picture's, and how far its middle
            lies to the right of the picture's, in heights of the picture.
        preprocess: size of a view.

    Raises:
        PictureError: not a picture.
    """
    image = _to_rgb(_open(path.read_bytes(), READABLE))
    height, width = preprocess.crop
    for share, right in views:
        high = share * image.height
        wide = high * width / height
        left = (image.width - wide) / 2 + right * image.height
        left = min(max(0.0, left), max(0.0, image.width - wide))
        top = (image.height - high) / 2
        box = (left, top, min(image.width, left + wide), top + high)
        yield np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box))


def normalise(pixels: Pixels, preprocess: Preprocess) -> FloatArray:
    """Turn pixels into the model's input.

    Args:
        pixels: (height, width, 3), uint8, RGB.
        preprocess: mean, std, channel order and layout from the manifest.

    Returns:
        (1, 3, height, width) or (1, height, width, 3), float32.
    """
    planes = pixels if preprocess.channels == "RGB" else pixels[:, :, ::-1]
    mean = np.asarray(preprocess.mean, dtype=np.float32)
    std = np.asarray(preprocess.std, dtype=np.float32)
    if preprocess.layout == "NCHW":
        planes = np.ascontiguousarray(planes.transpose(2, 0, 1))  # a byte a value: cheap to turn
        mean, std = mean[:, None, None], std[:, None, None]
    values = np.subtract(planes, mean, dtype=np.float32)
    values /= std
    return np.ascontiguousarray(values[None])


def write_pixels(pixels: Pixels, target: Path) -> None:
    """Write (height, width, 3), uint8, RGB, in the format of the target's suffix."""
    Image.fromarray(pixels).save(target)


def encode_pixels(pixels: Pixels, picture_format: PictureFormat, quality: int) -> bytes:
    """Compress (height, width, 3) uint8 RGB pixels as JPEG or WebP."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(
        buffer, picture_format, quality=quality, **ENCODER_OPTIONS[picture_format]
    )
    return buffer.getvalue()


def decode_pixels(content: bytes, picture_format: PictureFormat, height: int, width: int) -> Pixels:
    """Decode exactly (height, width, 3) pixels; the claimed size is checked before decoding.

    Raises:
        PictureError: another format or size, or a broken file.
    """
    image = _open(content, (picture_format,))
    if image.size != (width, height):
        raise PictureError(
            f"a picture of {image.size[0]} x {image.size[1]} where {width} x {height} is expected"
        )
    try:
        return np.asarray(_to_rgb(image), dtype=np.uint8)
    except Exception as error:  # Pillow raises what it meets, and may quote the file
        raise PictureError(f"the picture is damaged ({type(error).__name__})") from error
