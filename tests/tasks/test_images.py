from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewshot_blo.tasks import DataError
from fewshot_blo.tasks.reading.images import open_image, read_image


def stored(image: Image.Image, file_format: str, **options: object) -> BytesIO:
    stream = BytesIO()
    image.save(stream, file_format, **options)
    stream.seek(0)
    return stream


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF"])
@pytest.mark.parametrize("color", [True, False])
def test_formats(file_format: str, color: bool) -> None:
    image = Image.new("RGB", (16, 16), (200, 40, 120))
    pixels = read_image(stored(image, file_format), size=8, color=color)
    assert pixels.dtype == np.uint8
    assert pixels.shape == ((3 if color else 1), 8, 8)
    expected = (200, 40, 120) if color else (97,)
    np.testing.assert_allclose(pixels[:, 4, 4].astype(int), expected, atol=6)


@pytest.mark.parametrize(
    ("mode", "fill", "file_format", "expected"),
    [
        ("1", 1, "PNG", (255, 255, 255)),
        ("L", 90, "PNG", (90, 90, 90)),
        ("LA", (90, 0), "PNG", (255, 255, 255)),
        ("RGBA", (0, 0, 200, 255), "PNG", (0, 0, 200)),
        ("RGBA", (0, 0, 200, 0), "PNG", (255, 255, 255)),
        ("I;16", 0x80FF, "PNG", (0x80, 0x80, 0x80)),
        ("CMYK", (0, 255, 255, 0), "TIFF", (255, 0, 0)),
        ("CMYK", (0, 255, 255, 0), "JPEG", (254, 0, 0)),
    ],
)
def test_modes(
    mode: str, fill: float | tuple[int, ...], file_format: str, expected: tuple[int, ...]
) -> None:
    image = Image.new(mode, (8, 8), fill)
    pixels = read_image(stored(image, file_format), size=4, color=True)
    np.testing.assert_allclose(pixels[:, 1, 1].astype(int), expected, atol=2)


def test_transparent_palette_entries_are_white() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 0, 0, 200, 0, 200, 0])
    image.paste(2, (0, 0, 4, 8))
    stream = stored(image, "PNG", transparency=bytes([255, 0, 255]))
    pixels = read_image(stream, size=8, color=True)
    assert pixels[:, 0, 0].tolist() == [0, 200, 0]
    assert pixels[:, 0, 7].tolist() == [255, 255, 255]


def test_exif_orientation_is_applied() -> None:
    image = Image.new("L", (8, 8), 0)
    image.paste(255, (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    pixels = read_image(stored(image, "PNG", exif=exif), size=8, color=False)
    assert pixels[0, :, 7].tolist() == [255] * 8
    assert pixels[0, :, 0].tolist() == [0] * 8


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("L", (8, 8), value) for value in (30, 220)]
    stream = stored(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert set(read_image(stream, size=8, color=False).flat) == {30}


def test_cropped_to_the_centre_or_stretched() -> None:
    image = Image.new("L", (30, 10), 0)
    image.paste(255, (10, 0, 20, 10))
    cropped = read_image(stored(image, "PNG"), size=10, color=False)
    stretched = read_image(stored(image, "PNG"), size=10, color=False, crop=False)
    assert set(cropped.flat) == {255}
    assert stretched[0, 5, 0] == 0
    assert stretched[0, 5, 5] == 255


def test_an_image_of_extreme_aspect_does_not_grow() -> None:
    image = Image.new("L", (500_000, 1), 7)
    assert set(read_image(stored(image, "PNG"), size=64, color=False).flat) == {7}


def test_a_file_is_closed_and_named(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 7).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", size=4, color=False).sum() == 7 * 16
    with pytest.raises(DataError, match=r"b\.png cannot be decoded \(FileNotFoundError"):
        read_image(tmp_path / "b.png", size=4, color=False)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
        stored(Image.new("F", (4, 4), 5.5), "TIFF").getvalue(),
        stored(Image.new("I", (4, 4), -5), "TIFF").getvalue(),
    ],
    ids=["empty", "header only", "PostScript", "floating point", "32-bit"],
)
def test_what_cannot_be_decoded_is_named(content: bytes) -> None:
    with pytest.raises(DataError, match=r"^image the culprit cannot be decoded"):
        open_image(BytesIO(content), color=True, name="the culprit")
