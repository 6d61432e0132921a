"""Decoding of an image, given in any of the usual ways, to uint8 pixels of a given size."""

from __future__ import annotations

import re
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading.arrays import as_image
from fewshot_blo.tasks.reading.depth import eight_bit
from fewshot_blo.tasks.reading.formats import readable, remedy, suffix_of

Source: TypeAlias = "str | Path | bytes | BinaryIO | Image.Image | NDArray[Any] | Tensor"
"""Path, content of a file, open file, Pillow image, array ``[H, W, C]`` or tensor ``[C, H, W]``."""


def check_size(size: int) -> None:
    """Raises ``DataError`` unless ``size``, in pixels, is positive."""
    if size < 1:
        raise DataError(f"size is {size}: it must be a positive number of pixels")


def read_image(
    source: Source, *, size: int, color: bool, crop: bool = True, name: str | None = None
) -> NDArray[np.uint8]:
    """Reads an image as ``[C, size, size]``: C is 3 (RGB) with ``color``, else 1 (grey).

    The largest centred square is resized with the Lanczos filter; with ``crop=False`` the whole
    image is stretched to a square.

    Args:
        source: the image, as in ``open_image``.
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


def open_image(source: Source, *, color: bool, name: str | None = None) -> Image.Image:
    """Decodes an image to 8 bits per channel, RGB with ``color``, else grey.

    EXIF orientation is applied, transparent pixels are composited on white, and of an animation
    the first frame is taken. Images of 16 bits keep the upper 8 of the bits that are in use: those
    that the file states, else the first of 8, 12 and 16 that hold all values. Floating-point
    values must be in [0, 1]. An array or tensor is decoded as a file with its values is.

    Args:
        source: path, content of a file, open file, Pillow image, array ``[H, W]`` or ``[H, W, C]``
            or tensor ``[H, W]`` or ``[C, H, W]``, where C is 1 (grey), 3 (RGB) or 4 (RGBA).
        color: RGB, else grey.
        name: name of the image in errors, whose suffix is another format to try; its path by
            default.

    Raises:
        DataError: if the image cannot be decoded, or is too large to be decoded safely.
    """
    name = _name(source) if name is None else name
    with warnings.catch_warnings():
        # Ignore odd metadata in an image that decodes, but refuse decompression bombs.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            if isinstance(source, Image.Image):
                return eight_bit(source, color)
            if isinstance(source, np.ndarray | Tensor):
                return eight_bit(as_image(source), color)
            stream = BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(stream, formats=readable(name)) as image:
                return eight_bit(image, color)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise DataError(f"image {name} is too large ({error}): make it smaller") from error
        except FileNotFoundError as error:
            raise DataError(f"there is no image {name}: {_where(name)}") from error
        except IsADirectoryError as error:
            raise DataError(f"{name} is a folder: name an image file") from error
        except Exception as error:  # Pillow's decoders raise errors of any kind on corrupt files
            reason = re.sub(r"<_io\.BytesIO object at \w+>", lambda _: repr(name), str(error))
            raise DataError(
                f"image {name} cannot be decoded ({type(error).__name__}: {reason}): "
                f"{_remedy(source, name)}"
            ) from error


def _where(name: str) -> str:
    """What to do where there is no file of this name."""
    address = name.startswith(("http:/", "https:/"))
    return "addresses are not read, so download it first" if address else "check the path"


def _name(source: Source) -> str:
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "")) or f"of mode {source.mode}"
    if isinstance(source, np.ndarray | Tensor):
        return f"of shape {tuple(source.shape)}"
    return f"of {len(source)} bytes" if isinstance(source, bytes) else str(source)


def _remedy(source: Source, name: str) -> str:
    if isinstance(source, Image.Image | np.ndarray | Tensor):
        return "give its pixels as uint8"
    return remedy(suffix_of(name)) or "save it anew or leave it out"
