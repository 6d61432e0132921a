"""Glyphs: printed letters rendered from matplotlib's fonts, a data set that needs no download."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor

from fewshot_blo.tasks.dataset import ClassDataset, Splits
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading import glyph_rendering
from fewshot_blo.tasks.reading.array_cache import read_arrays, write_arrays
from fewshot_blo.tasks.reading.images import check_memory

RENDERINGS = 20
_FORMAT = 1
_TRAIN, _VALIDATION = 0.64, 0.16
# With this seed, every script occurs in every split.
_SPLIT_SEED = 44


def load(*, size: int = 28) -> Splits:
    """Over 1,000 letters of 15 scripts, 20 images each, as in Omniglot but printed.

    Images are ``[M, 1, size, size]``, ink 255 on 0: each letter in those DejaVu and STIX faces
    that contain it, each image with its own small distortion. Letters that look alike are one
    class, named by the lowest code point (``Latin/U+0041`` is also the Greek and Cyrillic
    capital). The first call renders the images in some seconds and keeps them in the cache
    folder; later calls read the cache.

    Args:
        size: height and width in pixels.

    Raises:
        DataError: if ``size`` is below 12 or matplotlib's fonts are missing.
    """
    if size < 12:
        raise DataError(f"size is {size}: it must be at least 12 pixels")
    name = f"glyphs-{size}px"
    key = f"{_FORMAT}, matplotlib {version('matplotlib')}, pillow {version('pillow')}"
    arrays = read_arrays(name, key)
    if arrays is not None:
        return _split(arrays["characters"].tolist(), torch.from_numpy(arrays["images"]))
    faces = glyph_rendering.read_faces()
    characters = glyph_rendering.distinct_characters(faces)
    check_memory(len(characters) * RENDERINGS, 1, size)
    images = glyph_rendering.render(faces, characters, count=RENDERINGS, size=size)
    write_arrays(name, key, characters=np.array(characters), images=images.numpy())
    return _split(characters, images)


def _split(characters: list[int], images: Tensor) -> Splits:
    names = [f"{glyph_rendering.script(c)}/U+{c:04X}" for c in characters]
    dataset = ClassDataset.from_counts(images, dict.fromkeys(names, RENDERINGS))
    # Depends on the character alone: a letter added to or removed from a font moves no other.
    place = np.array([np.random.default_rng((_SPLIT_SEED, c)).random() for c in characters])
    ends = (_TRAIN, _TRAIN + _VALIDATION)
    part = np.searchsorted(ends, place, side="right")
    train, validation, test = (dataset.select(np.flatnonzero(part == k).tolist()) for k in range(3))
    return Splits(train, validation, test)
