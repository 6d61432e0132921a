"""Images decoded once into the cache folder, or in memory where that cannot be written to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from fewshot_blo.tasks.dataset import ClassDataset
from fewshot_blo.tasks.reading.decoded import CacheError, Classes, check_disk, decoded_once
from fewshot_blo.tasks.reading.images import check_memory
from fewshot_blo.tasks.reading.splits_once import warn_uncached


def kept(
    root: Path,
    name: str,
    key: str,
    shape: tuple[int, int, int],
    counts: Mapping[str, int],
    decode: Callable[[], Classes],
    *,
    refresh: bool,
) -> ClassDataset:
    """The classes with these numbers of images, in this order, mapped from the cache.

    If they cannot be written there, a warning says so, and they stay in memory.

    Args:
        root, name, key, shape, decode, refresh: as in ``decoded_once``.
        counts: number of images of each class that ``decode`` yields.

    Raises:
        DataError: what ``decode`` raises; or if the images do not fit in memory either.
    """
    total, channels, size = sum(counts.values()), shape[0], shape[1]

    def checked() -> Classes:
        check_disk(total, channels, size)
        return decode()

    try:
        return decoded_once(root, name, key, shape, checked, refresh=refresh)
    except CacheError as error:
        check_memory(total, channels, size)
        warn_uncached(error)
    pixels = np.empty((total, *shape), np.uint8)
    images = chain.from_iterable(images for _, images in decode())
    for row, image in zip(pixels, images, strict=True):
        row[:] = image
    return ClassDataset.from_counts(torch.from_numpy(pixels), counts)
