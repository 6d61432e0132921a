"""Decoding of an image, given in any of the usual ways, to uint8 pixels of a given size."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from fewshot_blo.machine.memory import free_bytes
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading.arrays import array_bits, as_image
from fewshot_blo.tasks.reading.depth import bits_in_use, eight_bit
from fewshot_blo.tasks.reading.formats import readable, remedy, suffix_of

Source: TypeAlias = "str | Path | bytes | BinaryIO | Image.Image | NDArray[Any] | Tensor"
"""Path, content of a file, open file, Pillow image, array ``[H, W, C]`` or tensor ``[C, H, W]``."""


def check_size(size: int) -> None:
    """Raises ``DataError`` unless ``size``, in pixels, is positive."""
    if size < 1:
        raise DataError(f"size is {size}: it must be a positive number of pixels")


def check_memory(images: int, channels: int, size: int) -> None:
    """Raises ``DataError`` where uint8 images ``[images, channels, size, size]`` do not fit."""
    needed, free = images * channels * size**2, free_bytes(torch.device("cpu"))
    if needed > free:
        raise DataError(
            f"size is {size}: {images} images of {channels}x{size}x{size} need "
            f"{needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free: lower size"
        )


def read_image(
    source: Source,
    *,
    size: int,
    color: bool,
    crop: bool = True,
    name: str | None = None,
    bits: int = 0,
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
        bits: as in ``open_image``.

    Raises:
        DataError: as in ``open_image``.
    """
    return square(open_image(source, color=color, name=name, bits=bits), size=size, crop=crop)


def enlargement(files: Mapping[str, Path], size: int) -> tuple[str, ...]:
    """A sentence on images that are smaller than ``size``, where there are any; headers are read.

    Args:
        files: an image of each class.
        size: height and width in pixels that they are resized to.
    """
    small = []
    for file in files.values():
        with warnings.catch_warnings(), suppress(Exception):  # Decoding it will say what is wrong.
            warnings.simplefilter("ignore")
            with Image.open(file, formats=readable(str(file))) as image:
                small += [image.size] if min(image.size) < size else []
    if not small:
        return ()
    width, height = min(small, key=min)
    return (
        f"images are enlarged to {size}x{size}: the first one of {len(small)} of {len(files)} "
        f"classes is smaller, {width}x{height} the smallest",
    )


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


def open_image(
    source: Source, *, color: bool, name: str | None = None, bits: int = 0
) -> Image.Image:
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
        bits: bits in use, at least, of images of 16 bits whose file does not state them, such as
            ``common_bits`` of all images of a data set.

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
                return eight_bit(source, color, bits)
            if isinstance(source, np.ndarray | Tensor):
                return eight_bit(as_image(source, bits), color, bits)
            stream = BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(stream, formats=readable(name)) as image:
                return eight_bit(image, color, bits)
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


def common_bits(sources: Iterable[Source]) -> tuple[int, int]:
    """Bits in use of several images of 16 bits whose files do not state them; 0 if there are none.

    Images of one origin have one range of values, whatever their brightness: the brightest decides.
    Also returns the number of images that would be read as of fewer bits by themselves.
    """
    found = [bits for source in sources if (bits := _bits(source))]
    return max(found, default=0), sum(bits < max(found) for bits in found)


def _bits(source: Source) -> int:
    if isinstance(source, np.ndarray | Tensor):
        return array_bits(source)
    with warnings.catch_warnings(), suppress(Exception):  # Reading it will say what is wrong.
        warnings.simplefilter("ignore")
        if isinstance(source, Image.Image):
            return bits_in_use(source.copy())
        stream = BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(stream, formats=readable(_name(source))) as image:
            return bits_in_use(image)
    return 0


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
