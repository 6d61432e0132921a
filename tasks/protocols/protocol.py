"""``Protocol``, the base class of ways to draw tasks from classes, and the ``Plan`` of one task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fewshot_blo.tasks.errors import DataError

Counts = NDArray[np.int64]
Range = tuple[int, int]


class Plan(NamedTuple):
    """What one task has; its images are then drawn uniformly, without repetition.

    Attributes:
        classes: ``[n]``, distinct classes of the data set. The last ``unknown`` of them are not
            classes of the task: their queries have the label ``UNKNOWN``.
        shots: ``[n]``, number of support examples of each; 0 for unknown classes.
        queries: ``[n]``, number of query examples of each.
        unknown: number of unknown classes.
    """

    classes: Counts
    shots: Counts
    queries: Counts
    unknown: int = 0


class Sizes(NamedTuple):
    """Largest numbers of support and query images of a task, to which others are padded."""

    support: int
    query: int


@dataclass(frozen=True)
class Classes:
    """What a protocol knows of a data set.

    Attributes:
        counts: ``[classes]``, number of images of each class.
        names: name of each class.
    """

    counts: Counts
    names: Sequence[str]

    @cached_property
    def groups(self) -> Sequence[Counts]:
        """Classes that share the name before the first ``/``: alphabets of Omniglot, for one."""
        members: dict[str, list[int]] = {}
        for number, name in enumerate(self.names):
            members.setdefault(name.partition("/")[0], []).append(number)
        return [np.array(own) for own in members.values()]

    def check(self, way: int, shots: int, queries: int) -> None:
        """Checks that there are enough classes, and enough images of every class.

        Raises:
            DataError: if there are not.
        """
        if way > len(self.counts):
            raise DataError(
                f"{way}-way tasks need {way} classes, but this split has {len(self.counts)}: lower "
                "way or use a split with more classes (of a folder, by its fractions or csv)"
            )
        smallest = int(self.counts.argmin())
        name, count = self.names[smallest], self.counts[smallest]
        if count < shots + queries:
            raise DataError(
                f"class '{name}' has {count} images, but {shots} shots + {queries} "
                f"queries need {shots + queries}: lower shot or query"
            )

    def largest(self, way: int) -> Counts:
        """Numbers of images of the ``way`` largest classes, descending."""
        return -np.sort(-self.counts)[:way]


class Protocol(ABC):
    """How the classes of a task, and its numbers of support and query images, are drawn.

    A protocol is a frozen dataclass, whose fields are its settings. Fields ``way``, ``shot`` and
    ``query`` are those of a run's episodes, all others are settings of the protocol itself.

    Attributes:
        apart: whether every class has equally many rows of a batch, with padding between classes;
            by default rows are packed by class and padded at the end.
    """

    apart: ClassVar[bool] = False

    @property
    def most_way(self) -> int:
        """Largest number of classes of a task, to which others are padded: by default of ``way``.

        Networks with an output for each class are built for it. Unknown classes do not count.
        """
        return ascending("way", vars(self)["way"])[1]

    @abstractmethod
    def sizes(self, classes: Classes) -> Sizes:
        """The largest numbers of images of a task.

        Raises:
            DataError: if the data set has too few classes or images.
        """

    @abstractmethod
    def plan(self, classes: Classes, rng: np.random.Generator) -> Plan:
        """Draws a task; everything random comes from ``rng``."""

    @abstractmethod
    def describe(self) -> str:
        """Text for tables, with all settings that tell tasks apart."""


def ascending(name: str, size: int | Range) -> Range:
    """Both ends of a size or an inclusive range.

    Raises:
        DataError: if the range is not ascending.
    """
    low, high = (size, size) if isinstance(size, int) else size
    if low > high:
        raise DataError(f"{name} is {size}: it must be a positive integer or an ascending range")
    return low, high


def in_words(size: int | Range) -> str:
    """``5``, or ``5..10`` for a range."""
    low, high = (size, size) if isinstance(size, int) else size
    return str(low) if low == high else f"{low}..{high}"


def drawn(size: int | Range, rng: np.random.Generator) -> int:
    """A size from an inclusive range; nothing is drawn from a range of one number."""
    low, high = (size, size) if isinstance(size, int) else size
    return low if low == high else int(rng.integers(low, high + 1))
