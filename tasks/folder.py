"""Your own images: a folder with one subfolder per class, split by class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from csv import DictReader
from csv import Error as CsvError
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Positive
from fewshot_blo.tasks.dataset import ClassDataset, Splits
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading.decoded import (
    CacheError,
    check_disk,
    decoded_once,
    fingerprint,
)
from fewshot_blo.tasks.reading.image_folders import class_images
from fewshot_blo.tasks.reading.images import check_memory, check_size, read_image
from fewshot_blo.tasks.reading.splits_once import warn_uncached
from fewshot_blo.tasks.reading.walk import composed

FRACTIONS = (0.64, 0.16, 0.2)
"""Of the classes, for training, validation and test."""

_SPLITS = {"train": 0, "val": 1, "validation": 1, "test": 2}
_NAMES = ("train", "validation", "test")


@checked
def load(
    root: Path | str,
    *,
    size: int,
    fractions: tuple[Positive, Positive, Positive] = FRACTIONS,
    seed: int = 0,
    csv: Path | str | None = None,
    color: bool = True,
    refresh: bool = False,
) -> Splits:
    """The images of ``root/<class>/``, cropped to a square, ``[M, C, size, size]``.

    They may be in further subfolders. Links are followed. Hidden files, files that are no images
    and folders without images are passed over; the splits' notes say how many. Class names are the
    folder names, normalized to Unicode NFC. The first call decodes the images into the cache
    folder; later calls with the same division, size and colours map the cache into memory.

    Args:
        root: folder with one subfolder per class.
        size: height and width in pixels.
        fractions: fractions of the classes for training, validation and test; each split gets at
            least one class.
        seed: seed of the random split by ``fractions``; the split also depends on the number of
            classes and their alphabetical order.
        csv: CSV file with the columns ``class`` and ``split`` (``train``, ``validation`` or
            ``val``, ``test``), used instead of ``fractions``; unlisted classes are left out.
        color: RGB images, else grey.
        refresh: decode the images again.

    Raises:
        DataError: if there are fewer than 3 classes with images, an image cannot be decoded, or the
            fractions or the file do not give three splits.
    """
    root = Path(root)
    check_size(size)
    classes, notes = class_images(root)
    if len(classes) < 3:
        raise DataError(
            f"{root} has {len(classes)} class subfolders with images: at least 3 are needed, one "
            f"each for train, validation and test{_in_brackets(notes)}"
        )
    names = list(classes)
    parts = _by_fractions(names, fractions, seed) if csv is None else _by_csv(names, Path(csv))
    files = {name: classes[name] for part in parts for name in part}
    dataset = _read(root, files, size, color, refresh)
    return Splits.consecutive(dataset, [len(part) for part in parts], tuple(notes))


def _in_brackets(notes: Sequence[str]) -> str:
    return f" ({'; '.join(notes)})" if notes else ""


def _by_fractions(
    names: Sequence[str], fractions: tuple[float, float, float], seed: int
) -> list[list[str]]:
    if abs(sum(fractions) - 1) > 1e-6:
        raise DataError(
            f"fractions are {fractions}: they must be three positive numbers that sum to 1, "
            "for train, validation and test"
        )
    count = len(names)
    first = min(max(round(fractions[0] * count), 1), count - 2)
    second = min(max(round((fractions[0] + fractions[1]) * count), first + 1), count - 1)
    order = np.random.default_rng(seed).permutation(count)
    parts = np.split(order, [first, second])
    return [[names[int(position)] for position in sorted(part)] for part in parts]


def _by_csv(names: Sequence[str], file: Path) -> list[list[str]]:
    chosen: dict[str, int] = {}
    for line, name, split in _rows(file):
        where = f"{file}, line {line}"
        if split not in _SPLITS:
            raise DataError(f"{where}: split is '{split}': it must be train, validation or test")
        if name not in names:
            raise DataError(f"{where}: class '{name}' has no folder with images: correct the line")
        if name in chosen:
            raise DataError(f"{where}: class '{name}' is listed twice: list it once")
        chosen[name] = _SPLITS[split]
    parts = [[name for name in names if chosen.get(name) == part] for part in range(3)]
    for split, part in zip(_NAMES, parts, strict=True):
        if not part:
            raise DataError(f"{file} has no class in {split}: every split needs at least one")
    return parts


def _rows(file: Path) -> Iterator[tuple[int, str, str]]:
    """Yields line number, class and split of every row."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = DictReader(stream, skipinitialspace=True)
            absent = {"class", "split"} - set(reader.fieldnames or ())
            if absent:
                raise DataError(
                    f"{file}, line 1: column {' and '.join(sorted(absent))} is missing: the "
                    "columns must be class,split"
                )
            for row in reader:
                name, split = (row[column] or "" for column in ("class", "split"))
                yield reader.line_num, composed(name), split.strip().lower()
    except (OSError, UnicodeDecodeError, CsvError) as error:
        raise DataError(f"{file} cannot be read as CSV in UTF-8: {error}") from error


def _read(
    root: Path, files: Mapping[str, Sequence[Path]], size: int, color: bool, refresh: bool
) -> ClassDataset:
    """Images of the classes in this order, mapped from the cache, or in memory without one."""
    channels = 3 if color else 1
    counts = {name: len(paths) for name, paths in files.items()}
    total = sum(counts.values())

    def decode() -> Iterator[tuple[str, Iterator[NDArray[np.uint8]]]]:
        check_disk(total, channels, size)
        for name, paths in files.items():
            yield name, (read_image(path, size=size, color=color) for path in paths)

    name = f"folder-{'color' if color else 'grey'}-{size}px"
    key = fingerprint(root, chain.from_iterable(files.values()))
    try:
        return decoded_once(root, name, key, (channels, size, size), decode, refresh=refresh)
    except CacheError as error:
        check_memory(total, channels, size)
        warn_uncached(error)
    pixels = np.empty((total, channels, size, size), np.uint8)
    for row, file in zip(pixels, chain.from_iterable(files.values()), strict=True):
        row[:] = read_image(file, size=size, color=color)
    return ClassDataset.from_counts(torch.from_numpy(pixels), counts)
