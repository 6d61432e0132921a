"""Splits that are made in memory, kept in the cache folder for later calls and other processes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from fewshot_blo.tasks.dataset import ClassDataset, Splits
from fewshot_blo.tasks.reading.decoded import CacheError, check_disk, decoded_once


def splits_once(
    name: str,
    key: str,
    shape: tuple[int, int, int],
    make: Callable[[], Splits],
    numbers: Callable[[Sequence[str]], Sequence[int]],
    *,
    refresh: bool,
) -> Splits:
    """The splits cached under this name with this key, made first if there are none.

    If they cannot be written, a warning says so, and they stay in memory.

    Args:
        name, key, refresh: as in ``decoded_once``.
        shape: image shape ``(C, H, W)``.
        make: makes the splits.
        numbers: from the class names of all splits, which follow each other, to the number of
            classes of each.

    Raises:
        DataError: what ``make`` raises.
    """
    made = cache(make)

    def decode() -> Iterator[tuple[str, NDArray[np.uint8]]]:
        check_disk(sum(len(part) for _, part in made()), shape[0], shape[1])
        for _, part in made():
            yield from class_by_class(part)

    try:
        whole = decoded_once(None, name, key, shape, decode, refresh=refresh)
    except CacheError as error:
        warn_uncached(error)
        return made()
    return Splits.consecutive(whole, numbers(whole.class_names))


def class_by_class(dataset: ClassDataset) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Class names, each with its images ``[M, C, H, W]``."""
    images = dataset.images.split(dataset.counts.tolist())
    yield from zip(dataset.class_names, (each.numpy() for each in images), strict=True)


def warn_uncached(error: CacheError) -> None:
    """Says that images stay in the memory of this process alone."""
    warnings.warn(
        f"{error}; until then each process decodes the images and holds a copy of them",
        stacklevel=4,
    )
