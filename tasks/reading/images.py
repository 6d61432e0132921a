"""Decoding of one image file, whatever its kind, into bytes of one shape."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fewshot_blo.tasks.errors import DataError

# Pillow knows many more formats, some of which start other programs (EPS); these need none.
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF")


def check_size(size: int) -> None:
    """Raises ``DataError`` unless images can be ``size`` pixels high and wide."""
    if size < 1:
        raise DataError(f"size is {size}: it must be a positive number of pixels")


def read_image(
    source: Path | BinaryIO, *, size: int, color: bool, crop: bool = True, name: str | None = None
) -> NDArray[np.uint8]:
    """One image as ``[C, size, size]``: C is 3 (RGB) with ``color``, else 1 (grey).

    The largest centred square is resized with Lanczos's filter; with ``crop=False`` the whole
    image is stretched to a square.

    Args:
        source: a file, or an open one.
        size: height and width in pixels.
        color: RGB or grey.
        crop: whether to crop to a square before resizing, or to stretch.
        name: what errors call the image; its path by default.

    Raises:
        DataError: as ``open_image`` does.
    """
    return square(open_image(source, color=color, name=name), size=size, crop=crop)


def square(image: Image.Image, *, size: int, crop: bool = True) -> NDArray[np.uint8]:
    """Pixels ``[C, size, size]`` of an image with 8 bits a channel, as ``read_image`` has them."""
    shape = (size, size)
    if crop:
        # Crops before it resizes: an image of extreme aspect never grows.
        image = ImageOps.fit(image, shape, Image.Resampling.LANCZOS)
    else:
        image = image.resize(shape, Image.Resampling.LANCZOS)
    pixels = np.asarray(image).reshape(size, size, -1)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def open_image(source: Path | BinaryIO, *, color: bool, name: str | None = None) -> Image.Image:
    """One decoded image, RGB with ``color``, else grey, 8 bits a channel.

    EXIF orientation is applied, transparent pixels are laid on white, 16-bit images keep their
    upper byte, of an animation the first frame is taken.

    Args:
        source: a file, or an open one.
        color: RGB or grey.
        name: what errors call the image; its path by default.

    Raises:
        DataError: naming the image, if it does not decode or is too large to be decoded safely.
    """
    name = str(source) if name is None else name
    with warnings.catch_warnings():
        # Odd metadata in an image that decodes is of no interest; a decompression bomb is.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(source, formats=FORMATS) as image:
                return _eight_bit(ImageOps.exif_transpose(image), color)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise DataError(f"image {name} is too large: {error}: make it smaller") from error
        except Exception as error:  # Pillow's decoders raise errors of any kind on corrupt files
            raise DataError(
                f"image {name} cannot be decoded ({type(error).__name__}: {error}): "
                "remove it or get it again"
            ) from error


def _eight_bit(image: Image.Image, color: bool) -> Image.Image:
    """The image in mode RGB or L, from any mode that has a defined range."""
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
