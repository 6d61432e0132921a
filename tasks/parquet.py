"""Data sets in parquet files: of Hugging Face's hub, or written by its library datasets."""

from __future__ import annotations

import hashlib
import importlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fewshot_blo.errors import ConfigurationError, pip_install
from fewshot_blo.records.checked import checked
from fewshot_blo.records.files import cache_folder
from fewshot_blo.records.ranges import Positive
from fewshot_blo.tasks.dataset import Splits
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading.class_lists import SPLITS, class_list, published
from fewshot_blo.tasks.reading.decoded import CacheError, check_disk, fingerprint
from fewshot_blo.tasks.reading.division import (
    FRACTIONS,
    NAMES,
    by_fractions,
    by_table,
    check_parts,
    stored_parts,
)
from fewshot_blo.tasks.reading.images import check_memory, check_size
from fewshot_blo.tasks.reading.kept import kept
from fewshot_blo.tasks.reading.parquet_files import Rows, find_rows, images_of
from fewshot_blo.tasks.reading.walk import sentence

Places = Mapping[str, Sequence[tuple[int, int]]]
"""The images of each class, each by the place of its file and its row."""


@checked
def load(
    root: Path | str | None,
    *,
    repository: str = "",
    image: str = "",
    label: str = "",
    split: str = "stored",
    fractions: tuple[Positive, Positive, Positive] = FRACTIONS,
    seed: int = 0,
    csv: Path | str | None = None,
    size: int = 84,
    color: bool = True,
    refresh: bool = False,
) -> Splits:
    """Images of parquet files, cropped to a square, ``[M, C, size, size]``.

    Images are the content of image files (as a struct of ``bytes`` and ``path``, or binary), labels
    are integers or text. The names of integer labels are those of the feature ``ClassLabel``, which
    the files describe. A file belongs to the split that its name begins with, or that its folder is
    called. The first call decodes the images into the cache folder; later calls map them.

    Args:
        root: folder of parquet files, or one file; None for those of ``repository``.
        repository: data set on Hugging Face's hub, such as ``timm/mini-imagenet``, which is
            downloaded where ``root`` is None; needs huggingface_hub.
        image, label: names of the columns; empty to find them.
        split: division of the classes: ``stored``, as the files' splits divide them; ``separate``,
            as ``stored``, where the labels of each split start anew: classes are called train/0;
            ``fractions``, at random, with the images of all splits; or the name of published class
            lists (``miniimagenet``, ``tieredimagenet``, ``cifarfs``, ``fc100``).
        fractions: fractions of the classes for training, validation and test with ``fractions``.
        seed: seed of the random division.
        csv: CSV file with the columns ``class`` and ``split``, used instead of ``split``.
        size: height and width in pixels.
        color: RGB images, else grey.
        refresh: decode the images again.

    Raises:
        ConfigurationError: if a library is not installed.
        DataError: if files, columns, labels or images are not such, or do not give three splits.
    """
    check_size(size)
    root = _downloaded(repository) if root is None else Path(root)
    rows = find_rows(root, image, label)
    places = _by_class(rows, separate=split == "separate")
    notes = [text for text in [sentence(rows.passed_over)] if text]
    names = list(places)
    parts: Sequence[Sequence[str]]
    if csv is not None:
        parts = by_table(names, Path(csv), "rows")
    elif split in ("stored", "separate"):
        parts = _stored(rows, places, root)
    elif split == "fractions":
        parts = by_fractions(names, fractions, seed)
    else:
        parts = _published(names, split, root)
    ordered = {name: places[name] for part in parts for name in part}
    if left := len(places) - len(ordered):
        notes.append(f"{left} of {len(names)} classes passed over, for the division lists others")
    key = f"{fingerprint(root.parent, rows.files)} {rows.columns} {parts}"
    dataset = kept(
        root,
        f"parquet-{'color' if color else 'grey'}-{size}px",
        hashlib.sha256(key.encode()).hexdigest(),
        (3 if color else 1, size, size),
        {name: len(found) for name, found in ordered.items()},
        lambda: _decoded(rows, ordered, size, color),
        refresh=refresh,
    )
    return Splits.consecutive(dataset, [len(part) for part in parts], tuple(notes))


def _by_class(rows: Rows, separate: bool) -> dict[str, list[tuple[int, int]]]:
    places: dict[str, list[tuple[int, int]]] = {}
    for place, labels in enumerate(rows.labels):
        position = rows.splits[place]
        prefix = f"{NAMES[position]}/" if separate and position is not None else ""
        for row, name in enumerate(labels):
            if name is not None:
                places.setdefault(prefix + name, []).append((place, row))
    # By number where class names have one, else by name.
    order = {name: number for number, name in enumerate(rows.columns.names)}
    numbers = not order and all(name.isdigit() for name in places)
    return dict(sorted(places.items(), key=lambda item: _rank(item[0], order, numbers)))


def _rank(name: str, order: Mapping[str, int], numbers: bool) -> tuple[int, str]:
    return (int(name) if numbers else order.get(name, 0)), name


def _stored(rows: Rows, places: Places, root: Path) -> Sequence[Sequence[str]]:
    """The parts that the splits of the files say."""
    if None in rows.splits:
        file = rows.files[rows.splits.index(None)]
        raise DataError(
            f"{file} belongs to no split by its name, such as train-00000.parquet: set split to "
            "fractions, or csv to a file with the columns class,split"
        )
    known = [place for place in rows.splits if place is not None]
    stored = {name: {known[place] for place, _ in found} for name, found in places.items()}
    parts = stored_parts(stored)
    if parts is None:
        shared = next(name for name, splits in stored.items() if len(splits) > 1)
        first, second = sorted(stored[shared])[:2]
        raise DataError(
            f"{root}: class '{shared}' is in both {NAMES[first]} and {NAMES[second]}, so that the "
            "splits divide images and not classes: set split to fractions or to published lists, "
            "or to separate if the labels of each split start anew"
        )
    check_parts(parts, str(root))
    return parts


def _published(names: Sequence[str], lists: str, root: Path) -> list[list[str]]:
    if lists not in published():
        raise DataError(
            f"split is '{lists}': it must be stored, separate, fractions or one of "
            f"{', '.join(sorted(published()))}"
        )
    parts = [class_list(lists, split) for split in SPLITS]
    missing = [name for part in parts for name in part if name not in set(names)]
    if missing:
        raise DataError(
            f"{root} lacks {len(missing)} classes of {lists}, the first is '{missing[0]}'; its "
            f"classes are {', '.join(names[:3])}, ...: set split to another division"
        )
    return parts


def _decoded(
    rows: Rows, places: Places, size: int, color: bool
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yields the classes with their images, which files have in any order."""
    slots = {place: n for n, place in enumerate(p for found in places.values() for p in found)}
    with _blank((len(slots), 3 if color else 1, size, size)) as pixels:
        for place, row, image in images_of(rows, size, color):
            if (place, row) in slots:
                pixels[slots[place, row]] = image
        start = 0
        for name, found in places.items():
            yield name, pixels[start : start + len(found)]
            start += len(found)


@contextmanager
def _blank(shape: tuple[int, int, int, int]) -> Iterator[NDArray[np.uint8]]:
    """An array on disk beside the cache, or in memory where there is no room for both."""
    images, channels, size, _ = shape
    with ExitStack() as stack:
        try:
            check_disk(2 * images, channels, size)
            cache_folder().mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(tempfile.TemporaryFile(dir=cache_folder()))
        except (CacheError, OSError):
            check_memory(2 * images, channels, size)
            yield np.empty(shape, np.uint8)
            return
        yield np.memmap(file, np.uint8, "w+", shape=shape)


def _downloaded(repository: str) -> Path:
    """The folder of the parquet files of a data set on Hugging Face's hub, in its own cache."""
    try:
        hub = importlib.import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"repository is '{repository}': it needs huggingface_hub; {pip_install('.[hf]')}, or "
            "download its parquet files and set root"
        ) from error
    try:
        for revision in ("main", "refs/convert/parquet"):
            folder = Path(
                hub.snapshot_download(
                    repository,
                    repo_type="dataset",
                    revision=revision,
                    allow_patterns=["*.parquet"],
                )
            )
            if any(folder.rglob("*.parquet")):
                return folder
    except Exception as error:  # The hub's errors are of many kinds, of network and of access.
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"the download of {repository} failed ({type(error).__name__}: {reason}): try again, "
            "or download its parquet files and set root to their folder"
        ) from error
    raise DataError(f"{repository} has no parquet files on the hub: set root to a folder of images")
