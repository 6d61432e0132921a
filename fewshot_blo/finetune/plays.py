"""Plays: training sets from which images are left out, and what is asked about these images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

FOLDS = 10
_REDUCED = 10
"""Classes with fewer images are also played by larger classes reduced to as many images."""


@dataclass(frozen=True)
class Play:
    """One training set, and images that it lacks.

    Attributes:
        kept: rows of the images of the training set.
        asked: rows of the images to classify.
        size: number of images to which the class of the asked images was reduced; 0 if not reduced.
        absent: the class that has no image in the training set, to which the asked images belong,
            which are then strangers; -1 if there is none.
        half: whether the training set is half of the images, which says what more images gain.
    """

    kept: Tensor
    asked: Tensor
    size: int = 0
    absent: int = -1
    half: bool = False


@dataclass(frozen=True)
class Questions:
    """The images that all plays ask about, one row a question.

    Attributes:
        rows: the image of each question, ``[A]``.
        labels: its class, ``[A]``.
        sizes, absent, half: those of its play, ``[A]``.
        kept: numbers of images of each class in the training set of its play, ``[A, N]``.
        counts: numbers of images of each class, ``[N]``. Images of one group count once.
        classes: class of each of the M images, ``[M]``.
    """

    rows: Tensor
    labels: Tensor
    sizes: Tensor
    absent: Tensor
    half: Tensor
    kept: Tensor
    counts: Tensor
    classes: Tensor

    @property
    def strange(self) -> Tensor:
        """Which questions are about strangers, ``[A]``."""
        return self.absent >= 0

    @property
    def judged(self) -> Tensor:
        """Which questions say how good a candidate is: not about strangers, nor of halves."""
        return ~self.strange & ~self.half

    @property
    def own(self) -> Tensor:
        """Which of these are about images whose class was not reduced, ``[A]``."""
        return self.judged & (self.sizes == 0)

    @cached_property
    def weights(self) -> Tensor:
        """Weight of each question, ``[A]``: every class counts alike.

        A class has the answers about its own images, and those about classes that were reduced to
        its size. The fewer images it has, the more weight have the latter, as if they were the
        prior of a Beta distribution with a strength of ``prior_strength`` images. Classes for which
        there are no answers share the weight of all others. Other questions than the judged ones
        have none.
        """
        found = torch.zeros(len(self.rows), dtype=torch.float64)
        for number, count in enumerate(self.counts.tolist()):
            own, reduced = self.about(number)
            share = own_share(count, bool(own.any()), bool(reduced.any()))
            found[own] += share / max(int(own.sum()), 1)
            found[reduced] += (1 - share) / max(int(reduced.sum()), 1)
        return found / found.sum().clamp(min=1e-12)

    def about(self, number: int) -> tuple[Tensor, Tensor]:
        """Questions about a class's own images, and those about classes reduced to its size."""
        return (self.labels == number) & self.own, self.sizes == self.counts[number]


def prior_strength(count: int) -> float:
    """Number of images that the accuracy of other classes of this size is worth.

    The fewer images a class has, the more its accuracy depends on which images these are.
    """
    return min(2.0 * count, 10.0)


def own_share(count: int, own: bool, reduced: bool) -> float:
    """Weight of a class's own answers, beside those about classes reduced to its size."""
    if not reduced:
        return 1.0
    return count / (count + prior_strength(count)) if own else 0.0


def plays(
    labels: Tensor, groups: Tensor, *, repeats: int, folds: int = FOLDS, seed: int = 0
) -> list[Play]:
    """The plays of a data set.

    - Folds: stratified, repeated with other partitions. Images that are alone in their
      class are never held out. A group, as of near-duplicates, is held out as a whole.
    - Reductions: for each size below 10 images that a class has, classes of at least twice that
      size are reduced to it in turn. This is what the smaller class is judged by, in particular one
      whose only image is never held out.
    - Strangers: each class is left out as a whole, if there are at least three.
    - Halves: as two folds, repeated with other partitions.

    Args:
        labels: labels, ``[M]``.
        groups: group of each image, ``[M]``; images of one group are never separated.
        repeats: number of partitions into folds and into halves, and of reductions per class of a
            size.
        folds: largest number of folds; 10 by default.
        seed: seed of the draws.
    """
    rng = np.random.default_rng(seed)
    members = _groups_by_class(labels, groups)
    found = [play for _ in range(repeats) for play in _folds(labels, groups, members, rng, folds)]
    for size in sorted({len(own) for own in members if len(own) < _REDUCED}):
        donors = [own for own in members if len(own) >= max(2 * size, size + 1)]
        for _ in range(repeats):
            found += [_reduced(labels, groups, own, size, rng) for own in donors]
    if len(members) >= 3 and len(found):
        for number in range(len(members)):
            other = labels != number
            found.append(Play(_rows(other), _rows(~other), absent=number))
    if found:
        for _ in range(repeats):
            halves = _folds(labels, groups, members, rng, 2)
            found += [replace(play, half=True) for play in halves]
    return found


def questions(parts: Sequence[Play], labels: Tensor, groups: Tensor) -> Questions:
    """What the plays ask, in their order.

    Args:
        parts: the plays.
        labels, groups: as in ``plays``.
    """
    ways = int(labels.max()) + 1
    numbers = torch.tensor([len(play.asked) for play in parts], dtype=torch.int64)

    def repeated(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64).repeat_interleave(numbers)

    def count(rows: Tensor) -> Tensor:
        pairs = torch.stack([labels[rows], groups[rows]], 1).unique(dim=0)
        return torch.bincount(pairs[:, 0], minlength=ways)

    everything = torch.arange(len(labels))
    rows = torch.cat([everything[:0], *(play.asked for play in parts)])
    kept = [count(play.kept).expand(len(play.asked), ways) for play in parts]
    return Questions(
        rows,
        labels[rows],
        repeated([play.size for play in parts]),
        repeated([play.absent for play in parts]),
        repeated([play.half for play in parts]).bool(),
        torch.cat([torch.zeros(0, ways, dtype=torch.int64), *kept]),
        count(everything),
        labels,
    )


def _groups_by_class(labels: Tensor, groups: Tensor) -> list[list[int]]:
    """The groups of each class."""
    return [groups[labels == number].unique().tolist() for number in range(int(labels.max()) + 1)]


def _folds(
    labels: Tensor,
    groups: Tensor,
    members: list[list[int]],
    rng: np.random.Generator,
    most: int,
) -> list[Play]:
    """Stratified folds of groups, at most so many."""
    # Not scikit-learn's StratifiedKFold: it fails if all classes have fewer images than folds.
    number = min(most, max(map(len, members)))
    place = torch.full((len(labels),), -1)
    for label, own in enumerate(members):
        if len(own) < 2:
            continue
        # A random first fold makes folds equally large if classes have fewer images than folds.
        start = int(rng.integers(number))
        for fold, group in enumerate(rng.permutation(own).tolist()):
            place[(labels == label) & (groups == group)] = (fold + start) % number
    return [Play(_rows(place != f), _rows(place == f)) for f in range(number) if (place == f).any()]


def _reduced(
    labels: Tensor, groups: Tensor, own: list[int], size: int, rng: np.random.Generator
) -> Play:
    """The class of these groups, reduced to some of them; the others are asked."""
    asked = torch.isin(groups, torch.tensor(rng.permutation(own)[size:].tolist()))
    asked &= labels == labels[groups == own[0]][0]
    return Play(_rows(~asked), _rows(asked), size=size)


def _rows(mask: Tensor) -> Tensor:
    return mask.nonzero().flatten()
