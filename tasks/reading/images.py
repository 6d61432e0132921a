"""Decoding of an image file, of any supported format, to uint8 pixels of a given size."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fewshot_blo.tasks.errors import DataError

# Pillow reads more formats, but some start other programs (EPS).
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF")


def check_size(size: int) -> None:
    """Raises ``DataError`` unless ``size``, in pixels, is positive."""
    if size < 1:
        raise DataError(f"size is {size}: it must be a positive number of pixels")


def read_image(
    source: Path | BinaryIO, *, size: int, color: bool, crop: bool = True, name: str | None = None
) -> NDArray[np.uint8]:
    """Reads an image as ``[C, size, size]``: C is 3 (RGB) with ``color``, else 1 (grey).

    The largest centred square is resized with the Lanczos filter; with ``crop=False`` the whole
    image is stretched to a square.

    Args:
        source: path or open file.
        size: height and width in pixels.
        color: RGB, else grey.
        crop: crop to a square before resizing, else stretch.
        name: name of the image in errors; its path by default.

    Raises:
        DataError: as in ``open_image``.
    """
    return square(open_image(source, color=color, name=name), size=size, crop=crop)


def square(image: Image.Image, *, size: int, crop: bool = True) -> NDArray[np.uint8]:
    """Resizes an 8-bit image to pixels ``[C, size, size]``, as in ``read_image``."""
    shape = (size, size)
    if crop:
        # ``fit`` crops before it resizes: an image of extreme aspect ratio takes no more memory.
        image = ImageOps.fit(image, shape, Image.Resampling.LANCZOS)
    else:
        image = image.resize(shape, Image.Resampling.LANCZOS)
    pixels = np.asarray(image).reshape(size, size, -1)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def open_image(source: Path | BinaryIO, *, color: bool, name: str | None = None) -> Image.Image:
    """Decodes an image to 8 bits per channel, RGB with ``color``, else grey.

    EXIF orientation is applied, transparent pixels are composited on white, 16-bit images keep
    their upper byte, and of an animation the first frame is taken.

    Args:
        source: path or open file.
        color: RGB, else grey.
        name: name of the image in errors; its path by default.

    Raises:
        DataError: if the image cannot be decoded, or is too large to be decoded safely.
    """
    name = str(source) if name is None else name
    with warnings.catch_warnings():
        # Ignore odd metadata in an image that decodes, but refuse decompression bombs.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(source, formats=FORMATS) as image:
                return _eight_bit(ImageOps.exif_transpose(image), color)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise DataError(f"image {name} is too large ({error}): make it smaller") from error
        except Exception as error:  # Pillow's decoders raise errors of any kind on corrupt files
            raise DataError(
                f"image {name} cannot be decoded ({type(error).__name__}: {error}): "
                "remove it or download it again"
            ) from error


def _eight_bit(image: Image.Image, color: bool) -> Image.Image:
    """Converts an image to mode RGB or L, from any mode that has a defined range."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit values have no defined range")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point values have no defined range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB" if color else "L")
