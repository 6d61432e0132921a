"""Pictures of all kinds, with which an exported model is compared with its classifier."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_ORIENTATION = 0x0112
_PLAIN = (
    ("RGB", ".png", (211, 160)),
    ("RGB", ".bmp", (64, 64)),
    ("L", ".png", (97, 140)),
    ("LA", ".png", (120, 83)),
    ("P", ".png", (75, 75)),
    ("P", ".gif", (150, 101)),
    ("RGBA", ".png", (333, 250)),
    ("RGBA", ".tif", (60, 91)),
    ("CMYK", ".jpg", (128, 200)),
    ("CMYK", ".tif", (181, 77)),
    ("I;16", ".png", (144, 99)),
    ("I;16", ".tif", (70, 130)),
    ("1", ".png", (90, 90)),
    ("RGB", ".jpg", (640, 480)),
    ("RGB", ".jpg", (479, 1003)),
    ("L", ".jpg", (700, 33)),
    ("RGB", ".png", (25, 420)),
    ("RGB", ".png", (7, 5)),
)
"""Modes, formats and sizes; the last ones are large, extremely long, and tiny."""


def write_pictures(folder: Path) -> list[Path]:
    """Writes synthetic photographs of different sizes, modes, formats and EXIF orientations.

    Args:
        folder: where to write them.
    """
    rng = np.random.default_rng(0)
    return [*_of_all_modes(folder, rng), *_of_all_orientations(folder, rng)]


def _of_all_modes(folder: Path, rng: np.random.Generator) -> Iterator[Path]:
    for number, (mode, suffix, size) in enumerate(_PLAIN):
        path = folder / f"{number}{suffix}"
        image = Image.fromarray(_photograph(size, rng))
        if mode == "I;16":
            values = np.asarray(image.convert("L")).astype(np.uint16)
            Image.fromarray(values * 256 + rng.integers(0, 256, values.shape, np.uint16)).save(path)
        elif mode == "P":
            image.quantize(64).save(path, transparency=5)
        elif mode.endswith("A"):
            image = image.convert(mode)
            image.putalpha(Image.fromarray(_photograph(size, rng)[..., 0]))
            image.save(path)
        else:
            image.convert(mode).save(path)
        yield path


def _of_all_orientations(folder: Path, rng: np.random.Generator) -> Iterator[Path]:
    for orientation in range(1, 9):
        path = folder / f"orientation-{orientation}{'.tif' if orientation % 2 else '.jpg'}"
        exif = Image.Exif()
        exif[_ORIENTATION] = orientation
        Image.fromarray(_photograph((200 + 7 * orientation, 150), rng)).save(path, exif=exif)
        yield path


def _photograph(size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Smooth colours, sharp edges and noise, ``[H, W, 3]`` for ``(W, H)``."""
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    for _ in range(4):
        left, top = (int(rng.integers(0, n)) for n in size)
        box = (left, top, left + max(size[0] // 3, 1), top + max(size[1] // 3, 1))
        image.paste(tuple(int(value) for value in rng.integers(0, 256, 3)), box)
    noisy = np.asarray(image) + rng.normal(0, 8, (size[1], size[0], 3))
    return noisy.clip(0, 255).astype(np.uint8)
