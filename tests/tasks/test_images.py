from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from fewshot_blo.tasks import DataError
from fewshot_blo.tasks.reading import images
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
    with pytest.raises(DataError, match=r"there is no image .*b\.png: check the path"):
        read_image(tmp_path / "b.png", size=4, color=False)
    with pytest.raises(DataError, match="is a folder: name an image file"):
        read_image(tmp_path, size=4, color=False)
    with pytest.raises(DataError, match="addresses are not read, so download it first"):
        read_image("https://a.example/b.png", size=4, color=False)


def test_the_remedy_is_for_the_format_of_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="save it anew or leave it out"):
        open_image(b"content", color=True, name="a.png")
    monkeypatch.setattr(images, "remedy", {".heic": "pip install '.[heic]'"}.get)
    with pytest.raises(DataError, match=r"pip install '\.\[heic\]'"):
        open_image(b"content", color=True, name="a.heic")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
        stored(Image.new("F", (4, 4), 5.5), "TIFF").getvalue(),
        stored(Image.new("F", (4, 4), float("nan")), "TIFF").getvalue(),
        stored(Image.new("I", (4, 4), -5), "TIFF").getvalue(),
    ],
    ids=["empty", "header only", "PostScript", "floating point", "not a number", "32-bit"],
)
def test_what_cannot_be_decoded_is_named(content: bytes) -> None:
    with pytest.raises(DataError, match=r"^image the culprit cannot be decoded"):
        open_image(BytesIO(content), color=True, name="the culprit")


def png16(values: NDArray[np.uint16]) -> bytes:
    """A PNG of 16 bits, ``[H, W]`` or ``[H, W, 3 or 4]``; Pillow writes grey ones only."""
    kind = {2: 0, 3: values.shape[-1] - 1 if values.shape[-1] == 3 else 6}[values.ndim]
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, content: bytes) -> bytes:
        checked = name + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


def tiff16(values: NDArray[np.uint16], order: str, maximum: int = 0) -> bytes:
    """A TIFF of 16 bits, ``[H, W]`` or ``[H, W, 3]``, in byte order < or >."""
    height, width, channels = (*values.shape, 1)[:3]
    data = values.astype(order + "u2").tobytes()
    tags = [(256, width), (257, height), (259, 1), (262, 2 if channels == 3 else 1), (273, 0)]
    tags += [(277, channels), (278, height), (279, len(data)), (258, 0)]
    tags += [(281, maximum)] if maximum else []
    offset = 8 + 2 + 12 * len(tags) + 4
    text = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(tags))
    for tag, value in sorted(tags):
        if tag == 258 and channels == 3:
            text += struct.pack(order + "HHII", tag, 3, 3, offset)
        elif tag == 273:
            text += struct.pack(order + "HHII", tag, 4, 1, offset + 2 * channels)
        else:
            value = 16 if tag == 258 else value
            text += struct.pack(order + "HHIHH", tag, 3, 1, value, 0)
    return text + bytes(4) + struct.pack(f"{order}{channels}H", *[16] * channels) + data


def levels(bits: int, *shape: int) -> NDArray[np.uint16]:
    values = np.random.default_rng(0).integers(0, 1 << bits, shape).astype(np.uint16)
    values.flat[0] = (1 << bits) - 1
    if shape[-1] == 4:
        values[..., 3] = (1 << bits) - 1
    return values


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 3), (6, 7, 4)])
def test_the_bits_in_use_of_16_are_kept_whatever_the_image_is_given_as(
    bits: int, shape: tuple[int, ...], tmp_path: Path
) -> None:
    values = levels(bits, *shape)
    expected = (values >> (bits - 8)).astype(np.uint8)
    expected = np.broadcast_to(expected[..., None], (6, 7, 3)) if len(shape) == 2 else expected
    expected = expected[..., :3]
    content = png16(values)
    path = tmp_path / "a.png"
    path.write_bytes(content)
    tensor = torch.from_numpy(values.astype(np.int32))
    loaded = Image.open(BytesIO(content))
    for given in (
        *(path, str(path), content, BytesIO(content), Image.open(path), loaded, values),
        values.astype(np.int64),
        tensor.permute(2, 0, 1) if len(shape) == 3 else tensor,
        tensor,
    ):
        np.testing.assert_array_equal(np.asarray(open_image(given, color=True)), expected)


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 3)])
def test_the_bits_in_use_of_a_tiff(bits: int, order: str, shape: tuple[int, ...]) -> None:
    values = levels(bits, *shape)
    found = np.asarray(open_image(tiff16(values, order), color=len(shape) == 3))
    np.testing.assert_array_equal(found, values >> (bits - 8))


@pytest.mark.parametrize("maximum", [1023, 4095, 65535])
def test_the_bits_that_a_file_states(maximum: int) -> None:
    values = np.full((4, 5), 200, np.uint16)
    found = np.asarray(open_image(tiff16(values, "<", maximum), color=False))
    assert set(found.flat) == {200 >> (maximum.bit_length() - 8)}


def test_a_pgm_is_scaled_by_its_maximum() -> None:
    content = b"P5 2 1 1000\n" + struct.pack(">HH", 2, 1000)
    found = np.asarray(open_image(BytesIO(content), color=False, name="a.pgm"))
    assert found.tolist() == [[0, 255]]


def test_orientation_of_16_bits() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    values = levels(12, 4, 6)
    stream = stored(Image.fromarray(values), "PNG", exif=exif)
    found = np.asarray(open_image(stream, color=False))
    np.testing.assert_array_equal(found, np.rot90(values >> 4, -1))


def test_a_pillow_image_is_decoded_as_its_file_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    image = Image.new("RGBA", (8, 6), (0, 0, 200, 100))
    image.paste((10, 200, 0, 255), (0, 0, 4, 3))
    palette = Image.new("P", (8, 6), 1)
    palette.putpalette([0, 0, 0, 0, 0, 200])
    for name, picture, options in (
        ("a.png", image, {"exif": exif}),
        ("b.png", palette, {"transparency": 1}),
        ("c.png", Image.new("LA", (8, 6), (9, 0)), {}),
        ("d.tif", Image.new("CMYK", (8, 6), (0, 99, 9, 7)), {"exif": exif}),
    ):
        path = tmp_path / name
        picture.save(path, **options)
        expected = np.asarray(open_image(path, color=True))
        opened = Image.open(path)
        np.testing.assert_array_equal(np.asarray(open_image(opened, color=True)), expected)
        opened.load()
        np.testing.assert_array_equal(np.asarray(open_image(opened, color=True)), expected)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (np.array([[True, False]]), [[255, 0]]),
        (np.array([[0.0, 1.0]]), [[0, 255]]),
        (np.array([[0.0, 0.5]], np.float16), [[0, 128]]),
        (torch.tensor([[0.0, 1.0]], dtype=torch.bfloat16), [[0, 255]]),
        (torch.tensor([[[7, 8]]]), [[7, 8]]),
        (np.array([[[7], [8]]], np.uint8), [[7, 8]]),
        (torch.tensor([[0.0, 1.0]], requires_grad=True), [[0, 255]]),
        (Image.fromarray(np.array([[0.0, 1.0]], np.float32)), [[0, 255]]),
    ],
)
def test_arrays_and_tensors(given: NDArray[np.uint8], expected: list[list[int]]) -> None:
    assert np.asarray(open_image(given, color=False)).tolist() == expected


def test_transparent_pixels_of_arrays_are_white() -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, :, 3] = 255
    assert np.asarray(open_image(pixels, color=False)).tolist() == [[0, 0], [255, 255]]
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    assert np.asarray(open_image(tensor, color=False)).tolist() == [[0, 0], [255, 255]]


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (np.full((2, 2), -1), r"integers from -1 to -1 have no defined range: it must be 0 to 255"),
        (np.full((2, 2), 70000), "integers from 70000 to 70000 have no defined range"),
        (np.full((2, 2), 1.5), r"must have values in \[0, 1\]; for 0 to 255 use uint8"),
        (np.full((2, 2), np.inf), r"must have values in \[0, 1\]"),
        (np.zeros((0, 2)), r"shape \(0, 2\) is not that of one image"),
        (np.zeros((2, 2, 2, 2)), "is not that of one image: it must be"),
        (np.array([["a"]]), "values of type <U1 are no pixels"),
        (b"content", "image of 7 bytes cannot be decoded"),
    ],
)
def test_what_is_no_image_is_said(given: NDArray[np.uint8], match: str) -> None:
    with pytest.raises(DataError, match=match):
        open_image(given, color=True)


def test_a_damaged_file_is_not_taken_for_another_format(tmp_path: Path) -> None:
    """Formats without a signature, such as TGA, would read any bytes."""
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "a.tga")
    content = (tmp_path / "a.tga").read_bytes()
    assert read_image(tmp_path / "a.tga", size=4, color=True)[:, 0, 0].tolist() == [1, 2, 3]
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match="cannot be decoded"):
        read_image(tmp_path / "a.png", size=4, color=True)
