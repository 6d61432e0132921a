"""The tables of the report: classes, confusions, candidates."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fewshot_blo.finetune.images import LabelledImages
from fewshot_blo.finetune.report.answers import Answers
from fewshot_blo.finetune.selection import Selection

_STEPS = 9


@dataclass(frozen=True)
class ClassRow:
    """One class.

    Attributes:
        name: its name.
        images, groups: number of its images, and where near-duplicates count once.
        asked, right: number of its images that were held out, and of those that were correct.
        expected: accuracy to expect on new images, or on the test images; None if not measured.
        tests: number of test images, if there is a test set.
        mistaken, times: the class that its wrong images are most often given, and how many are.
    """

    name: str
    images: int
    groups: int
    asked: int
    right: int
    expected: float | None
    tests: int
    mistaken: str
    times: int

    @property
    def share(self) -> float:
        """Share of its held-out images that were correct; every image has the same weight."""
        return self.right / self.asked


@dataclass(frozen=True)
class Confusion:
    """Images of one class that are given another: how many, of how many that were held out."""

    name: str
    mistaken: str
    times: int
    asked: int


@dataclass(frozen=True)
class CandidateRow:
    """A candidate: accuracy and log-loss on held-out images, where every class counts alike."""

    name: str
    accuracy: float
    loss: float
    chosen: bool


def class_rows(data: LabelledImages, answers: Answers, selection: Selection) -> list[ClassRow]:
    """One row a class.

    The share of correct images is that of the class's own held-out images, of equal weights. What
    to expect is the promise's: there the answers about larger classes that were reduced to the size
    of this one have a part.
    """
    names, counts = data.class_names, answers.confusion()
    rows = []
    for number, name in enumerate(names):
        own, found = data.labels == number, selection.promise.classes[number]
        others = [0 if c == number else times for c, times in enumerate(counts[number])]
        times = max(others)
        rows.append(
            ClassRow(
                name,
                int(own.sum()),
                len(data.groups[own].unique()),
                sum(counts[number]),
                counts[number][number],
                found.accuracy,
                found.count if selection.promise.test else 0,
                names[others.index(times)] if times else "",
                times,
            )
        )
    return rows


def largest_confusions(names: tuple[str, ...], counts: list[list[int]]) -> list[Confusion]:
    """Pairs of classes by the number of images that are given the second one, most first."""
    found = [
        Confusion(names[row], names[column], times, sum(counts[row]))
        for row in range(len(names))
        for column, times in enumerate(counts[row])
        if row != column and times
    ]
    return sorted(found, key=lambda pair: -pair.times)


def shades(counts: list[list[int]]) -> list[list[str]]:
    """Class of style of each cell: ``y`` for correct and ``n`` for wrong, with a depth of 1 to 9.

    Args:
        counts: the confusion matrix.
    """
    return [
        [
            f"{'y' if row == column else 'n'}{-(-_STEPS * times // sum(line))}" if times else ""
            for column, times in enumerate(line)
        ]
        for row, line in enumerate(counts)
    ]


def candidate_rows(selection: Selection) -> list[CandidateRow]:
    """The candidates in the order in which they were tried; none if no image was held out."""
    if not len(selection.best.answers):
        return []
    return [
        CandidateRow(h.candidate.name, h.accuracy, h.loss, place == selection.chosen)
        for place, h in enumerate(selection.held_out)
    ]


def duplicate_groups(data: LabelledImages) -> list[list[int]]:
    """Rows of the images of each group that has more than one, the largest group first."""
    sizes = torch.bincount(data.groups, minlength=1)
    shared = (sizes > 1).nonzero().flatten().tolist()
    groups = [(data.groups == group).nonzero().flatten().tolist() for group in shared]
    return sorted(groups, key=lambda rows: -len(rows))
