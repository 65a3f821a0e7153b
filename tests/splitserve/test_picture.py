"""Pictures to inputs: geometry against Pillow's own resize and crop, odd and hostile files."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from splitserve.artifact import Preprocess
from splitserve.errors import PictureError, UsageError
from splitserve.picture import (
    PIXEL_LIMIT,
    Pixels,
    decode_picture,
    decode_pixels,
    encode_pixels,
    list_pictures,
    normalise,
)

GREY = (128, 64, 32)


def geometry(short: int = 256, crop: tuple[int, int] = (224, 224), **more: Any) -> Preprocess:
    return Preprocess(
        resize_short_side=short, crop=crop, **{"mean": (0.0,) * 3, "std": (1.0,) * 3} | more
    )


SMALL = geometry(16, (12, 8))


def encode(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def plain(mode: str, colour: Any, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new(mode, size, colour)


def resize_then_crop(image: Image.Image, preprocess: Preprocess, method: int) -> Pixels:
    """Follow docs/artifact.md the long way: resize all whole pixels of the picture, then crop."""
    scale = preprocess.resize_short_side / min(image.size)
    wide, high = (side * scale for side in image.size)
    whole = int(wide + 1e-6), int(high + 1e-6)
    box = (0, 0, min(image.width, whole[0] / scale), min(image.height, whole[1] / scale))
    resized = image.convert("RGB").resize(whole, Image.Resampling(method), box=box)
    rows, columns = preprocess.crop
    left, top = round((wide - columns) / 2), round((high - rows) / 2)
    return np.asarray(resized.crop((left, top, left + columns, top + rows)))


@pytest.mark.parametrize("name", ["coffee.png", "camera.png", "chelsea.png", "motorcycle_left.png"])
@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_geometry_is_that_of_resizing_and_cropping(pictures: Path, name: str, method: str) -> None:
    preprocess = geometry(resample=method)
    content = (pictures / name).read_bytes()
    expected = resize_then_crop(
        Image.open(io.BytesIO(content)), preprocess, Image.Resampling[method.upper()]
    )
    found = decode_picture(content, preprocess)
    assert found.shape == expected.shape
    difference = np.abs(found.astype(int) - expected)
    # Pillow ends its filters at the box, which shows in the outermost pixels, and rounds between
    # its two passes.
    assert difference[4:-4, 4:-4].max() <= 1
    assert difference.mean() < 0.2


def test_picture_whose_sides_scale_to_whole_pixels_is_cropped_exactly() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    preprocess = geometry(32, (24, 20))
    expected = resize_then_crop(Image.fromarray(noise), preprocess, Image.Resampling.BICUBIC)
    found = decode_picture(encode(Image.fromarray(noise)), preprocess)
    # Pillow rounds between its two passes; where the box ends changes single counts.
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_picture_at_its_own_size_is_cropped_without_change() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    found = decode_picture(encode(Image.fromarray(noise)), geometry(32, (24, 20)))
    assert np.array_equal(found, noise[4:28, 14:34])


@pytest.mark.parametrize("crop", [(12, 8), (8, 12), (16, 16), (1, 1)])
@pytest.mark.parametrize("size", [(40, 30), (30, 40), (16, 16), (1, 500), (500, 1), (1, 1), (3, 2)])
def test_any_shape_of_picture_gives_the_crop(size: tuple[int, int], crop: tuple[int, int]) -> None:
    found = decode_picture(encode(plain("RGB", GREY, size)), geometry(16, crop))
    assert found.shape == (*crop, 3)
    assert found.dtype == np.uint8
    assert np.array_equal(np.unique(found.reshape(-1, 3), axis=0), [GREY])


def palette(**more: Any) -> bytes:
    return encode(plain("RGB", GREY).quantize(), **more)


def deep_grey(value: int) -> bytes:
    return encode(Image.fromarray(np.full((30, 40), value, np.uint16)))


@pytest.mark.parametrize(
    ("content", "colour"),
    [
        (encode(plain("1", 1)), (255, 255, 255)),
        (encode(plain("L", 100)), (100, 100, 100)),
        (encode(plain("LA", (100, 0))), (100, 100, 100)),
        (encode(plain("RGBA", (*GREY, 0))), GREY),
        (encode(plain("RGB", GREY), transparency=GREY), GREY),
        (palette(), GREY),
        (palette(transparency=0), GREY),
        (palette(transparency=bytes([7])), GREY),
        (deep_grey(0x8000), (128, 128, 128)),
        (deep_grey(0x00FF), (0, 0, 0)),
        (encode(plain("RGB", GREY), "BMP"), GREY),
        (encode(plain("RGB", GREY), "WEBP", lossless=True), GREY),
        (encode(plain("RGBA", (*GREY, 255)), "WEBP", lossless=True), GREY),
    ],
    ids=[
        "1 bit", "grey", "grey alpha", "alpha", "colour key", "palette", "palette key",
        "palette alpha", "16 bit", "16 bit dark", "bmp", "webp", "webp alpha",
    ],
)  # fmt: skip
def test_every_kind_of_pixel_becomes_rgb(content: bytes, colour: tuple[int, int, int]) -> None:
    assert np.array_equal(
        np.unique(decode_picture(content, SMALL).reshape(-1, 3), axis=0), [colour]
    )


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (plain("CMYK", (10, 20, 30, 40)), (207, 198, 190)),
        (plain("L", 100), (100, 100, 100)),
        (plain("RGB", GREY), GREY),
    ],
    ids=["cmyk", "grey", "colour"],
)
def test_every_kind_of_jpeg_becomes_rgb(image: Image.Image, colour: tuple[int, int, int]) -> None:
    found = decode_picture(encode(image, "JPEG", quality=100), SMALL)
    assert np.abs(found.astype(int) - colour).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_picture_is_turned_upright_before_it_is_cropped(orientation: int, kind: str) -> None:
    upright = np.zeros((80, 60, 3), np.uint8)
    upright[:40, :30] = (250, 10, 10)
    upright[:40, 30:] = (10, 250, 10)
    upright[40:, :30] = (10, 10, 250)
    # Undo what EXIF's definition of each value says a reader must do.
    turns = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turns[orientation]))
    found = decode_picture(encode(stored, kind, exif=exif), geometry(60, (60, 40)))
    corners = found[[5, 5, -5, -5], [5, -5, 5, -5]].astype(int)
    expected = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (0, 0, 0)]
    # JPEG and WebP round colours.
    assert np.abs(corners - expected).max() <= 12


def test_large_jpeg_decoded_at_reduced_size_keeps_its_geometry(pictures: Path) -> None:
    image = Image.open(pictures / "coffee.png").convert("RGB").resize((2400, 1600))
    preprocess = geometry(128, (112, 112))
    found = decode_picture(encode(image, "JPEG", quality=95), preprocess)
    expected = resize_then_crop(image, preprocess, Image.Resampling.BICUBIC)
    # Two steps of reduction instead of one blur a little differently.
    assert np.abs(found.astype(int) - expected).mean() < 2


def claim(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims a size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_picture_that_claims_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    message = f"9000 x 9889 pixels is over the limit of {PIXEL_LIMIT}"
    with pytest.raises(PictureError, match=message):
        decode_picture(claim(9000, 9889), SMALL)
    with pytest.raises(PictureError, match="over the limit of 1199"):
        decode_picture(encode(plain("RGB", GREY)), SMALL, limit=1199)
    decode_picture(encode(plain("RGB", GREY)), SMALL, limit=1200)


@pytest.mark.parametrize("size", [(10**4, 10**4), (2**31 - 1, 2**31 - 1), (0, 5), (5, 0), (0, 0)])
def test_absurd_claims_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(PictureError):
        decode_picture(claim(*size), SMALL)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_truncated_picture_is_refused(pictures: Path, kind: str, share: float) -> None:
    content = encode(Image.open(pictures / "chelsea.png"), kind)
    with pytest.raises(PictureError):
        decode_picture(content[: int(len(content) * share)], SMALL)


@pytest.mark.parametrize("content", [b"", b"\0", b"no picture", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_picture_is_refused(content: bytes) -> None:
    with pytest.raises(PictureError, match="not a JPEG, PNG, WEBP, BMP file"):
        decode_picture(content, SMALL)


def test_other_formats_are_refused() -> None:
    with pytest.raises(PictureError, match="not a JPEG, PNG, WEBP, BMP file"):
        decode_picture(encode(plain("RGB", GREY), "GIF"), SMALL)


def seeds() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a note"
    image = plain("RGB", GREY)
    first = [encode(image, kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP")]
    return [*first, encode(image, "BMP"), palette(transparency=bytes([7])), deep_grey(9)]


@given(st.sampled_from(seeds()), st.data())
def test_noise_in_a_picture_raises_our_error_only(content: bytes, data: st.DataObject) -> None:
    noisy = bytearray(content)
    places = st.integers(0, min(len(content), data.draw(st.sampled_from([64, 10**6]))) - 1)
    for _ in range(data.draw(st.integers(1, 6))):
        noisy[data.draw(places)] = data.draw(st.sampled_from([0, 255, 128]) | st.integers(0, 255))
    try:
        assert decode_picture(bytes(noisy), SMALL, limit=10**6).shape == (12, 8, 3)
    except PictureError:
        return


def test_rotated_picture_with_a_damaged_tag_is_still_read() -> None:
    width = struct.pack("<HHI", 0x0100, 2, 4) + b"abc\0"  # text where a number belongs
    orientation = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + width + orientation + bytes(4)
    content = encode(plain("RGB", GREY), "PNG", exif=exif)
    assert decode_picture(content, SMALL).shape == (12, 8, 3)


def test_normalise_subtracts_divides_and_orders() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 3), dtype=np.uint8)
    mean, std = (10.0, 20.0, 30.0), (2.0, 4.0, 8.0)
    values = normalise(pixels, geometry(16, (12, 8), mean=mean, std=std))
    assert (values.shape, values.dtype) == ((1, 3, 12, 8), np.float32)
    assert values.flags.c_contiguous
    for channel in range(3):
        expected = (pixels[:, :, channel] - mean[channel]) / std[channel]
        np.testing.assert_array_equal(values[0, channel], expected)


def test_normalise_takes_mean_and_std_in_the_order_of_the_channels() -> None:
    pixels = np.zeros((12, 8, 3), np.uint8)
    pixels[:] = (1, 2, 3)
    preprocess = geometry(
        16, (12, 8), channels="BGR", layout="NHWC", mean=(3.0, 2.0, 0.0), std=(1.0, 1.0, 4.0)
    )
    values = normalise(pixels, preprocess)
    assert values.shape == (1, 12, 8, 3)
    assert values[0, 0, 0].tolist() == [0.0, 0.0, 0.25]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_normalise_makes_the_shape_that_the_manifest_promises(layout: str) -> None:
    preprocess = geometry(16, (12, 8), layout=layout)
    assert normalise(np.zeros((12, 8, 3), np.uint8), preprocess).shape == preprocess.shape


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_pixels_survive_the_picture_codecs_nearly(pictures: Path, kind: Any) -> None:
    pixels = decode_picture((pictures / "chelsea.png").read_bytes(), geometry())
    content = encode_pixels(pixels, kind, 90)
    found = decode_pixels(content, kind, 224, 224)
    assert found.shape == (224, 224, 3)
    assert np.abs(found.astype(int) - pixels).mean() < 5
    assert len(content) < pixels.nbytes / 4


def test_decode_pixels_takes_one_format_and_size_only() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    content = encode(Image.fromarray(noise), "JPEG")
    with pytest.raises(PictureError, match="40 x 30 where 30 x 40 is expected"):
        decode_pixels(content, "JPEG", 40, 30)
    with pytest.raises(PictureError, match="not a WEBP file"):
        decode_pixels(content, "WEBP", 30, 40)
    with pytest.raises(PictureError, match="is damaged"):
        decode_pixels(content[:-200], "JPEG", 30, 40)


def test_pictures_of_a_folder_are_listed_by_name(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpeg", "c.txt", "d.webp"):
        (tmp_path / name).touch()
    (tmp_path / "e.jpg").mkdir()
    assert [path.name for path in list_pictures(tmp_path)] == ["a.jpeg", "b.PNG", "d.webp"]


def test_folder_without_pictures_says_what_it_looked_for(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match=r"no \.jpg, \.jpeg, \.png, \.webp, \.bmp files here"):
            list_pictures(folder)
