"""Your own images: a folder with one subfolder per class, or with tables of files and classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Positive
from fewshot_blo.tasks.dataset import Splits
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading.class_files import class_files
from fewshot_blo.tasks.reading.decoded import fingerprint
from fewshot_blo.tasks.reading.division import FRACTIONS, by_fractions, by_table, own_table
from fewshot_blo.tasks.reading.images import check_size, enlargement, read_image
from fewshot_blo.tasks.reading.kept import kept
from fewshot_blo.tasks.reading.unpacked import unpacked
from fewshot_blo.tasks.reading.walk import counted


@checked
def load(
    root: Path | str,
    *,
    size: int,
    fractions: tuple[Positive, Positive, Positive] = FRACTIONS,
    seed: int = 0,
    csv: Path | str | None = None,
    table: Path | str | None = None,
    color: bool = True,
    refresh: bool = False,
) -> Splits:
    """The images of ``root/<class>/``, cropped to a square, ``[M, C, size, size]``.

    They may be in further subfolders. Links are followed. Hidden files, files that are no images
    and folders without images are passed over; the splits' notes say how many. Class names are the
    folder names, normalized to Unicode NFC. Where the folder has a file ``classes.csv`` with the
    columns ``class`` and ``split``, it divides the classes. Else folders ``train``, ``val`` and
    ``test`` of class folders, or tables of these names, are the splits; where all of them hold the
    same classes, they are joined. The first call decodes the images into the cache folder; later
    calls with the same division, size and colours map the cache into memory. The splits' notes say
    if images were enlarged.

    Args:
        root: folder with one subfolder per class, or with ``train``, ``val`` and ``test``, or with
            tables that list its images: ``train.csv``, ``val.csv`` and ``test.csv`` of files and
            classes (LibFewShot, easyfsl's miniImageNet), or ``train.json`` and so on of class
            folders (easyfsl); or a zip archive of such a folder, which is unpacked into the cache
            folder once.
        size: height and width in pixels.
        fractions: fractions of the classes for training, validation and test where no files divide
            them; each split gets at least one class.
        seed: seed of the random split by ``fractions``; the split also depends on the number of
            classes and their alphabetical order.
        csv: CSV file with the columns ``class`` and ``split`` (``train``, ``validation`` or
            ``val``, ``test``), used instead of any other division; unlisted classes are left out.
            Its path may be relative to ``root``, as may that of ``table``.
        table: CSV file of the images and their classes, and perhaps their splits, as
            ``read_manifest`` reads it, or folder of such tables for each split, used instead of
            class folders.
        color: RGB images, else grey.
        refresh: decode the images again.

    Raises:
        DataError: if there are fewer than 3 classes with images, an image cannot be decoded, or the
            fractions or the files do not give three splits.
    """
    check_size(size)
    root, notes = unpacked(Path(root), refresh=refresh)
    csv, table = _within(root, csv), _within(root, table)
    if csv is None and table is None:
        csv = own_table(root)
        notes += (f"{csv.name} in the folder divides the classes",) if csv else ()
    found = class_files(root, table, csv=csv)
    names = list(found.classes)
    if len(names) < 3:
        raise DataError(
            f"{root} has {counted(len(names), 'class', 'classes')} with images: at least 3 are "
            f"needed, one each for train, validation and test{_in_brackets(found.notes)}"
        )
    if csv is not None:
        parts = by_table(names, csv, "folder with images")
    else:
        parts = found.parts or by_fractions(names, fractions, seed)
    files = {name: found.classes[name] for part in parts for name in part}

    def decode() -> Iterator[tuple[str, Iterator[NDArray[np.uint8]]]]:
        for name, paths in files.items():
            yield name, (read_image(path, size=size, color=color) for path in paths)

    dataset = kept(
        root,
        f"folder-{'color' if color else 'grey'}-{size}px",
        fingerprint(root, chain.from_iterable(files.values())),
        (3 if color else 1, size, size),
        {name: len(paths) for name, paths in files.items()},
        decode,
        refresh=refresh,
    )
    notes += (*found.notes, *enlargement({name: paths[0] for name, paths in files.items()}, size))
    return Splits.consecutive(dataset, [len(part) for part in parts], notes)


def _within(root: Path, file: Path | str | None) -> Path | None:
    """The path, also one that is given relative to the folder of the data."""
    if file is None:
        return None
    return root / file if (root / file).exists() and not Path(file).exists() else Path(file)


def _in_brackets(notes: Sequence[str]) -> str:
    return f" ({'; '.join(notes)})" if notes else ""
