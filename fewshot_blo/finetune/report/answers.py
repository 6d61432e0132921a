"""What the selected candidate answers about each image without it in training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fewshot_blo.finetune.cross_validation import HeldOut

MARGIN = 0.2
"""A correct answer is doubtful if the second class is nearer than this, in probability."""


@dataclass(frozen=True)
class Answers:
    """One answer per image: the mean logits of the folds that hold it out.

    Attributes:
        labels: labels of the images, ``[M]``.
        known: which images were held out, ``[M]``.
        probabilities: probabilities of the classes, ``[M, N]``; NaN if it was never held out.
    """

    labels: Tensor
    known: Tensor
    probabilities: Tensor

    @property
    def unasked(self) -> int:
        """Number of images that were never held out."""
        return int((~self.known).sum())

    @cached_property
    def predicted(self) -> Tensor:
        """The most likely class of each image, ``[M]``; meaningless if it was never held out."""
        return self.probabilities.argmax(1)

    @cached_property
    def other(self) -> Tensor:
        """The most likely class apart from the labelled one, ``[M]``: if wrong, the predicted."""
        return self.probabilities.scatter(1, self.labels.unsqueeze(1), -1.0).argmax(1)

    @cached_property
    def own(self) -> Tensor:
        """Probability of the labelled class, ``[M]``."""
        return self.probabilities.gather(1, self.labels.unsqueeze(1)).squeeze(1)

    @cached_property
    def sure(self) -> Tensor:
        """Probability of the most likely class, ``[M]``."""
        return self.probabilities.amax(1)

    @cached_property
    def wrong(self) -> Tensor:
        """Which images were held out and given another class, ``[M]``."""
        return self.known & (self.predicted != self.labels)

    def wrong_rows(self) -> list[int]:
        """Rows of the wrong images, the lowest probability of the labelled class first."""
        return _ordered(self.wrong, self.own)

    def doubtful_rows(self) -> list[int]:
        """Rows of correct images of a small margin, the smallest first."""
        first, second = self.probabilities.topk(2, 1).values.unbind(1)
        margin = first - second
        return _ordered(self.known & ~self.wrong & (margin < MARGIN), margin)

    def confusion(self) -> list[list[int]]:
        """Numbers of held-out images: rows are classes, columns predictions."""
        ways = self.probabilities.shape[1]
        places = self.labels[self.known] * ways + self.predicted[self.known]
        counts: list[list[int]] = (
            torch.bincount(places, minlength=ways**2).reshape(ways, ways).tolist()
        )
        return counts


def answers_of(held_out: HeldOut) -> Answers:
    """The answers of a candidate."""
    logits = held_out.logits
    probabilities = (logits / held_out.scale.temperature).softmax(1)
    return Answers(held_out.labels, logits.isfinite().all(1), probabilities)


def _ordered(mask: Tensor, key: Tensor) -> list[int]:
    rows = mask.nonzero().flatten()
    ordered: list[int] = rows[key[rows].argsort(stable=True)].tolist()
    return ordered
