"""Division of classes into training, validation and test: by fractions, by lists, by a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.reading.manifest import read_class_table

FRACTIONS = (0.64, 0.16, 0.2)
"""Of the classes, for training, validation and test."""

NAMES = ("train", "validation", "test")

# The last two are CloserLookFewShot's names of CUB's splits (wyharveychen/CloserLookFewShot).
SPLIT_OF = {
    **dict.fromkeys(("train", "training", "trainset", "base"), 0),
    **dict.fromkeys(("val", "valid", "validation", "valset", "dev"), 1),
    **dict.fromkeys(("test", "testing", "testset", "novel"), 2),
}
"""The position of a split, 0 to 2, by any of its usual names in lower case."""

Parts = Sequence[Sequence[str]]
"""Class names of training, validation and test."""


def by_fractions(
    names: Sequence[str], fractions: tuple[float, float, float], seed: int
) -> list[list[str]]:
    """Divides classes at random; each part has at least one and keeps their order.

    Raises:
        DataError: if there are fewer than 3 classes, or the fractions do not sum to 1.
    """
    if min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise DataError(
            f"fractions are {fractions}: they must be three positive numbers that sum to 1, "
            "for train, validation and test"
        )
    count = len(names)
    if count < 3:
        raise DataError(
            f"there are {count} classes: at least 3 are needed, one each for train, validation and "
            "test"
        )
    first = min(max(round(fractions[0] * count), 1), count - 2)
    second = min(max(round((fractions[0] + fractions[1]) * count), first + 1), count - 1)
    order = np.random.default_rng(seed).permutation(count)
    parts = np.split(order, [first, second])
    return [[names[int(position)] for position in sorted(part)] for part in parts]


def by_table(names: Sequence[str], file: Path, kind: str) -> list[list[str]]:
    """Divides classes as a table with the columns class and split says; others are left out.

    Args:
        names: the classes, in order.
        file: the table.
        kind: what a class that has none lacks, as in "folder with images".

    Raises:
        DataError: if the table cannot be read, or a line is wrong, or a part is empty.
    """
    chosen: dict[str, int] = {}
    for row in read_class_table(file):
        where = f"{file}, line {row.line}"
        if row.split not in SPLIT_OF:
            raise DataError(
                f"{where}: split is '{row.split}': it must be train, validation or test"
            )
        if row.label not in names:
            raise DataError(f"{where}: class '{row.label}' has no {kind}: correct the line")
        if row.label in chosen:
            raise DataError(f"{where}: class '{row.label}' is listed twice: list it once")
        chosen[row.label] = SPLIT_OF[row.split]
    parts = [[name for name in names if chosen.get(name) == part] for part in range(3)]
    check_parts(parts, str(file))
    return parts


def own_table(root: Path) -> Path | None:
    """``classes.csv`` in a folder of class folders, if it has the columns class and split."""
    file = root / "classes.csv"
    try:
        return file if file.is_file() and read_class_table(file) else None
    except DataError:  # It is about something else.
        return None


def check_parts(parts: Parts, source: str) -> None:
    """Raises ``DataError`` if a part has no class, naming the source that divides them."""
    for split, part in zip(NAMES, parts, strict=True):
        if not part:
            raise DataError(f"{source} has no class in {split}: every split needs at least one")


def stored_parts(stored: Mapping[str, set[int]]) -> list[list[str]] | None:
    """The parts that the positions of splits of each class say; None for splits of images.

    That is where every class of validation and test is in training too.

    Args:
        stored: for each class, in order, the splits that hold images of it.

    Raises:
        DataError: if some classes are in several splits and others in one that is not training.
    """
    shared = [name for name, splits in stored.items() if len(splits) > 1]
    if not shared:
        return [[n for n, splits in stored.items() if part in splits] for part in range(3)]
    alone = [n for n, splits in stored.items() if 0 not in splits]
    if alone:
        first, second = sorted(stored[shared[0]])[:2]
        raise DataError(
            f"class '{shared[0]}' is in both {NAMES[first]} and {NAMES[second]}, but "
            f"'{alone[0]}' is not in train: splits must hold different classes, or all of them the "
            "same; divide the classes with a CSV file of the columns class,split"
        )
    return None


IMAGE_SPLITS = (
    "the splits hold the same classes, so that they divide images: they were joined, and the "
    "classes divided at random"
)
"""The note on splits for which ``stored_parts`` returns None."""
