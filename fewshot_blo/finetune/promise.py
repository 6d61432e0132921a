"""The accuracy to expect on new images if every class is equally frequent, with an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fewshot_blo.finetune.cross_validation import HeldOut
from fewshot_blo.finetune.plays import prior_strength
from fewshot_blo.finetune.proportion import wilson

_LEARNING = 0.6
"""Gain of the log-odds of a correct answer when the number of training images grows e-fold. Between
0.3 and 0.8 for two networks on CIFAR-FS and Tiny-ImageNet, from 1 to 10 images a class."""
_DRAWN = 2.0
"""Number of images that the mean accuracy of all classes is worth for one of them."""
_SPREAD = 1.25
"""Standard deviation of promised minus true accuracy, divided by that of independent answers: the
training sets of the folds overlap, and the true accuracy is that of one training set."""

_ALIKE = 5.0
"""Number of wrong answers, or of correct ones if they are fewer, whose evidence on how the classes
differ weighs as much as the assumption that all have the same accuracy."""


@dataclass(frozen=True)
class ClassAccuracy:
    """Expected accuracy on new images of one class.

    Attributes:
        accuracy: None if it was not measured.
        answers: number of independent answers that the estimate is worth.
        count: number of images of the class that were classified without them in training.
    """

    accuracy: float | None
    answers: float
    count: int


@dataclass(frozen=True)
class Promise:
    """Expected accuracy on new images, where every class counts alike.

    Attributes:
        classes: that of each of the N classes.
        test: whether the images are a test set, which no training has seen.
    """

    classes: tuple[ClassAccuracy, ...]
    test: bool = False

    def __repr__(self) -> str:
        return f"Promise({self.describe()})"

    @property
    def accuracy(self) -> float | None:
        """Mean over the classes with a measured accuracy; None if there is no such class."""
        measured = [c.accuracy for c in self.classes if c.accuracy is not None]
        return sum(measured) / len(measured) if measured else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the accuracy."""
        share, measured = self.accuracy, [c for c in self.classes if c.accuracy is not None]
        if share is None:
            return None
        total = sum(c.answers for c in measured)
        smooth = (share * total + 0.5) / (total + 1)
        own = sum(_variance(c, smooth) for c in measured)
        alike = smooth * (1 - smooth) * sum(1 / c.answers for c in measured)
        # How classes differ is known by the answers that are rarer, which are the wrong ones.
        rare = total * min(share, 1 - share)
        variance = (rare * own + _ALIKE * alike) / (rare + _ALIKE) / len(measured) ** 2
        return wilson(share, smooth * (1 - smooth) / variance)

    @property
    def count(self) -> int:
        """Number of images that were classified without them in training."""
        return sum(c.count for c in self.classes)

    def describe(self) -> str:
        """The expected accuracy, as a sentence without its full stop."""
        if self.accuracy is None or self.interval is None:
            return "accuracy not measured, because no class has two images: add images"
        low, high = self.interval
        where = "on the test images" if self.test else "to expect on new images"
        images = f"{self.count} {'test' if self.test else 'held-out'} images"
        return (
            f"accuracy {where} {100 * self.accuracy:.1f} % if all classes are equally frequent "
            f"(95 % interval {100 * low:.0f} to {100 * high:.0f} %, from {images})"
        )

    def unmeasured(self, names: Sequence[str]) -> str:
        """A sentence about the classes without a held-out image; empty if there are none.

        Args:
            names: names of the N classes.
        """
        pairs = list(zip(names, self.classes, strict=True))
        guessed = [name for name, c in pairs if not c.count and c.accuracy is not None]
        unknown = [name for name, c in pairs if c.accuracy is None]
        sentences = []
        if guessed:
            sentences.append(
                f"no image of {_listed(guessed)} could be held out: the accuracy of larger classes "
                "that were reduced to as few images stands for it"
            )
        if unknown and len(unknown) < len(names):
            reason = (
                "has test images"
                if self.test
                else "has a second image to hold out, or a larger class to stand for it"
            )
            sentences.append(
                f"the accuracy does not include {_listed(unknown)}, of which none {reason}"
            )
        return "; ".join(sentences)


def promise(held_out: HeldOut, optimism: float = 0.0) -> Promise:
    """What the answers of the selected candidate promise.

    The accuracy of a class is drawn to that of larger classes reduced to its size or, if there are
    none, as by two images, to the mean of all classes. The folds train on fewer images than the
    classifier will: the log-odds of a correct answer are therefore raised by 0.6 times the
    logarithm of the ratio of the numbers.

    Args:
        held_out: answers of the selected candidate.
        optimism: what to subtract, because the candidate was selected by these answers.
    """
    asked, right = held_out.asked, held_out.correct
    mean = float(asked.weights @ right)
    found = []
    for number, count in enumerate(asked.counts.tolist()):
        own, reduced = asked.about(number)
        images = len(asked.rows[own].unique())
        if not own.any() and not reduced.any():
            found.append(ClassAccuracy(None, 0.0, 0))
            continue
        answers = count if own.any() else 0
        # Worth of what the accuracy is drawn to, which is only information if it is measured.
        strength = prior_strength(count) if reduced.any() else _DRAWN
        total = answers + strength
        expected = strength / total * (float(right[reduced].mean()) if reduced.any() else mean)
        if own.any():
            expected += answers / total * float(right[own].mean())
            gain = _LEARNING * math.log(count / float(asked.kept[own, number].double().mean()))
            expected = _raised(expected, gain * (answers / total if reduced.any() else 1))
        worth = total if reduced.any() else answers
        expected = max(expected - optimism, 0.0)
        found.append(ClassAccuracy(expected, worth / _SPREAD**2, images))
    return Promise(tuple(found))


def measured(right: Tensor, labels: Tensor, ways: int) -> Promise:
    """Accuracy on a test set.

    Args:
        right: whether each prediction is correct, ``[M]``.
        labels: labels, ``[M]``.
        ways: N, the number of classes.
    """
    found = []
    for number in range(ways):
        own = right[labels == number].double()
        share = float(own.mean()) if len(own) else None
        found.append(ClassAccuracy(share, float(len(own)), len(own)))
    return Promise(tuple(found), test=True)


def _variance(found: ClassAccuracy, typical: float) -> float:
    """Variance of the estimate, at an accuracy that is drawn to the typical one."""
    assert found.accuracy is not None
    share = (found.accuracy * found.answers + 2 * typical) / (found.answers + 2)
    return share * (1 - share) / found.answers


def _raised(share: float, gain: float) -> float:
    """A proportion whose log-odds are raised."""
    return share / (share + (1 - share) * math.exp(-gain))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")
