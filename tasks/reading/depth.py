"""Conversion of a Pillow image of any mode to 8 bits a channel, RGB or grey."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

_DEPTHS = (8, 12, 16)
_OTHER_BYTE = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA")
    for order, other in (("B", "L"), ("L", "B"), ("N", "B"))
}
"""Pillow reads the upper byte of 16-bit colours; in the other byte order it reads the lower one."""
_BITS_PER_SAMPLE, _MAX_SAMPLE_VALUE = 258, 281


def eight_bit(image: Image.Image, color: bool, bits: int = 0) -> Image.Image:
    """Converts an image to mode RGB or L, upright and on white.

    Args:
        image: an image of any mode, loaded or not.
        color: RGB, else grey.
        bits: bits in use, at least, of integers of more than 8 bits whose file does not state them.

    Raises:
        ValueError: if its values have no defined range.
    """
    depth, low = _stated_depth(image) or bits, _lower_bytes(image)
    # Orientation is that of the file: the lower bytes have it too.
    orientation = image.getexif().get(0x0112, 1)
    if low is not None:
        high = np.asarray(image).astype(np.uint16)
        image = Image.fromarray(narrow(high << 8 | low, bits))
    elif image.mode.startswith("I"):
        image = Image.fromarray(narrow(np.asarray(image), depth))
    elif image.mode == "F":
        image = Image.fromarray(from_unit(np.asarray(image)))
    if orientation != 1:
        image.getexif()[0x0112] = orientation
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB" if color else "L")


def bits_in_use(image: Image.Image) -> int:
    """The first of 8, 12 and 16 bits that hold all values of an image of more than 8 bits.

    0 for other images, and for those whose file states the bits.

    Args:
        image: an image of any mode, not loaded.
    """
    wide = image.mode.startswith("I") or _raw(image) in _OTHER_BYTE
    if not wide or _stated_depth(image):
        return 0
    low = _lower_bytes(image)
    values = np.asarray(image)
    highest = int(values.max())
    if low is not None:
        highest = int((values.astype(np.uint16) << 8 | low).max())
    elif not image.mode.startswith("I"):
        return _DEPTHS[-1]
    return highest_bits(highest)


def highest_bits(highest: int) -> int:
    """The first of 8, 12 and 16 bits that hold a value; 0 if none does."""
    return next((bits for bits in _DEPTHS if highest < 1 << bits), 0)


def narrow(values: NDArray[Any], depth: int = 0) -> NDArray[np.uint8]:
    """The upper 8 of the bits in use of non-negative integers.

    Args:
        values: integers of up to 16 bits.
        depth: bits in use; 0, or fewer than the values have, for the first of 8, 12 and 16 that
            hold all values.

    Raises:
        ValueError: if a value is negative or has more than 16 bits.
    """
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest > 65535:
        raise ValueError(
            f"integers from {lowest} to {highest} have no defined range: it must be 0 to 255 or 0 "
            "to 65535"
        )
    if highest >= 1 << depth:
        depth = highest_bits(highest)
    return (values >> max(depth - 8, 0)).astype(np.uint8)


def from_unit(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Floating-point numbers in [0, 1] as 0 to 255.

    Raises:
        ValueError: if a number is outside of [0, 1] or not finite.
    """
    if not (values.min() >= 0 and values.max() <= 1):  # NaN too.
        raise ValueError(
            f"floating-point numbers from {values.min():g} to {values.max():g} have no defined "
            "range: images of floating-point numbers must have values in [0, 1]; for 0 to 255 use "
            "uint8"
        )
    return (values * 255).round().astype(np.uint8)


def _stated_depth(image: Image.Image) -> int:
    """Bits in use that the file states, below 16 or scaled to 16; 0 if it does not."""
    tags = getattr(image, "tag_v2", {})
    highest = tags.get(_MAX_SAMPLE_VALUE, 0)
    highest = max(highest) if isinstance(highest, tuple) else highest
    bits = max(tags.get(_BITS_PER_SAMPLE, (16,)))
    # Pillow scales a PGM of another maximum to 16 bits.
    scaled = any(tile[0] in ("ppm", "ppm_plain") for tile in (getattr(image, "tile", None) or ()))
    return 16 if scaled else int(highest).bit_length() or (bits if bits < 16 else 0)


def _lower_bytes(image: Image.Image) -> NDArray[np.uint8] | None:
    """The lower bytes of 16-bit colours whose upper bytes hold 12 bits or fewer; None for others.

    Loads the image. If it is loaded already, its lower bytes are lost.
    """
    raw = _raw(image)
    origin = getattr(image, "filename", "") or getattr(image, "fp", None)
    image.load()
    if raw not in _OTHER_BYTE or not origin or np.asarray(image).max() >= 16:
        return None
    with Image.open(origin, formats=(str(image.format),)) as again:
        again.tile = [_with_raw(tile, _OTHER_BYTE[raw]) for tile in again.tile]
        again.load()
        return np.asarray(again)


def _raw(image: Image.Image) -> Any:
    """The raw mode of an image that is not loaded; None if it is loaded."""
    tiles = getattr(image, "tile", None) or ()
    raw = tiles[0][3] if tiles else None
    return raw[0] if isinstance(raw, tuple) else raw


def _with_raw(tile: Any, raw: str) -> Any:
    """The tile with another raw mode, which is its last item or the first of that."""
    args = tile[3]
    parts = (*tile[:3], (raw, *args[1:]) if isinstance(args, tuple) else raw)
    # A plain tuple before Pillow 11, a named one since.
    return tile._make(parts) if hasattr(tile, "_make") else parts
