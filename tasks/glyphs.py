"""Glyphs: printed letters rendered from matplotlib's fonts, a data set that needs no download."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fewshot_blo.tasks.dataset import ClassDataset, Splits
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading import glyph_rendering
from fewshot_blo.tasks.reading.images import check_memory
from fewshot_blo.tasks.reading.splits_once import splits_once

RENDERINGS = 20
_FORMAT = 2
_TRAIN, _VALIDATION = 0.64, 0.16
# With this seed, every script occurs in every split.
_SPLIT_SEED = 44


def load(*, size: int = 28, refresh: bool = False) -> Splits:
    """Over 1,000 letters of 15 scripts, 20 images each, as in Omniglot but printed.

    Images are ``[M, 1, size, size]``, ink 255 on 0: each letter in those DejaVu and STIX faces
    that contain it, each image with its own small distortion. Letters that look alike are one
    class, named by the lowest code point (``Latin/U+0041`` is also the Greek and Cyrillic
    capital). The first call renders the images in some seconds and keeps them in the cache
    folder; later calls map the cache into memory.

    Args:
        size: height and width in pixels.
        refresh: render the images again.

    Raises:
        DataError: if ``size`` is below 12 or matplotlib's fonts are missing.
    """
    if size < 12:
        raise DataError(f"size is {size}: it must be at least 12 pixels")
    key = f"{_FORMAT}, matplotlib {version('matplotlib')}, pillow {version('pillow')}"

    def make() -> Splits:
        faces = glyph_rendering.read_faces()
        characters = glyph_rendering.distinct_characters(faces)
        check_memory(len(characters) * RENDERINGS, 1, size)
        images = glyph_rendering.render(faces, characters, count=RENDERINGS, size=size)
        return _split(characters, images)

    shape = (1, size, size)
    return splits_once(f"glyphs-{size}px", key, shape, make, _numbers, refresh=refresh)


def _split(characters: list[int], images: Tensor) -> Splits:
    names = [f"{glyph_rendering.script(c)}/U+{c:04X}" for c in characters]
    dataset = ClassDataset.from_counts(images, dict.fromkeys(names, RENDERINGS))
    part = _parts(characters)
    train, validation, test = (dataset.select(np.flatnonzero(part == k).tolist()) for k in range(3))
    return Splits(train, validation, test)


def _parts(characters: Sequence[int]) -> NDArray[np.int64]:
    """The split of each character: 0, 1 or 2 for training, validation and test."""
    # Depends on the character alone: a letter added to or removed from a font moves no other.
    place = np.array([np.random.default_rng((_SPLIT_SEED, c)).random() for c in characters])
    return np.searchsorted((_TRAIN, _TRAIN + _VALIDATION), place, side="right")


def _numbers(names: Sequence[str]) -> list[int]:
    """How many of these letters are in each split."""
    characters = [int(name.rpartition("/U+")[2], 16) for name in names]
    return [int((_parts(characters) == part).sum()) for part in range(3)]
