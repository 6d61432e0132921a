"""Letters of the fonts that matplotlib carries: a data set that needs no download."""

from __future__ import annotations

import warnings
import zipfile
import zlib
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tasks import glyph_rendering
from tasks.dataset import ClassDataset, Splits
from tasks.errors import DataError
from tasks.files import atomic_write, cache_folder

RENDERINGS = 20
_FORMAT = 1
_TRAIN, _VALIDATION = 0.64, 0.16
# With this seed every script is in every split.
_SPLIT_SEED = 44


def load(*, size: int = 28, cache: Path | None = None) -> Splits:
    """Over 1,000 letters of 15 scripts, 20 pictures each, as in Omniglot but printed.

    Pictures are ``[M, 1, size, size]``, ink 255 on 0: a letter in the faces of the DejaVu and
    STIX families that have it, each picture with a small distortion of its own. Letters that look
    alike are one class, under the name of the lowest code point (``Latin/U+0041`` is also the
    Greek and Cyrillic capital). The first call renders, which takes some seconds, and keeps the
    pictures in a cache.

    Args:
        size: height and width of the pictures.
        cache: folder of the cache; by default one in the user's cache folder.

    Raises:
        DataError: if the size is below 12 or matplotlib's fonts are missing.
    """
    if size < 12:
        raise DataError(f"size is {size}: letters need pictures of at least 12 x 12 pixels")
    name = f"glyphs-v{_FORMAT}-{size}px-matplotlib{version('matplotlib')}.npz"
    path = (cache if cache is not None else cache_folder()) / name
    cached = _read(path, size)
    if cached is None:
        characters, images = _render(size)
        _write(path, characters, images)
    else:
        characters, images = cached
    return _split(characters, images)


def _render(size: int) -> tuple[list[int], Tensor]:
    faces = glyph_rendering.read_faces()
    characters = glyph_rendering.distinct_characters(faces)
    return characters, glyph_rendering.render(faces, characters, count=RENDERINGS, size=size)


def _read(path: Path, size: int) -> tuple[list[int], Tensor] | None:
    """The cached characters and pictures, or None where there is nothing whole."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            characters, images = arrays["characters"], arrays["images"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    if characters.ndim != 1 or characters.dtype.kind != "i" or images.dtype != np.uint8:
        return None
    if images.shape != (len(characters) * RENDERINGS, 1, size, size):
        return None
    return characters.tolist(), torch.from_numpy(images)


def _write(path: Path, characters: list[int], images: Tensor) -> None:
    try:
        with atomic_write(path) as file:
            np.savez_compressed(file, characters=np.array(characters), images=images.numpy())
    except OSError as error:
        warnings.warn(
            f"the glyphs cannot be cached and will be rendered again next time: {error}; "
            "name a folder that can be written to",
            stacklevel=3,
        )


def _split(characters: list[int], images: Tensor) -> Splits:
    names = [f"{glyph_rendering.script(c)}/U+{c:04X}" for c in characters]
    labels = torch.arange(len(characters)).repeat_interleave(RENDERINGS)
    dataset = ClassDataset(images, labels, tuple(names))
    # By the character alone: a font that gains or loses a letter moves no other one.
    place = np.array([np.random.default_rng((_SPLIT_SEED, c)).random() for c in characters])
    ends = (_TRAIN, _TRAIN + _VALIDATION)
    part = np.searchsorted(ends, place, side="right")
    train, validation, test = (dataset.select(np.flatnonzero(part == k).tolist()) for k in range(3))
    return Splits(train, validation, test)
