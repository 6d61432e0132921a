"""A classifier that learns a class, or corrected labels, as a new one; says what is doubtful."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.evaluation.evaluate import embed
from fewshot_blo.finetune.classifier import Classifier
from fewshot_blo.finetune.doubts import HeldOutClass, doubts, hold_out_class
from fewshot_blo.finetune.near_duplicates import near_duplicates
from fewshot_blo.finetune.neighbours import Neighbours, distinct
from fewshot_blo.tasks.reading.walk import counted

_TIMES = 3
"""How often an image may count so that it is predicted as the class that a person says."""


@dataclass(frozen=True)
class Growth:
    """A classifier that has learned.

    Attributes:
        classifier: the new classifier; the one that was given stays as it was.
        name: the class that was learned or got more images.
        learned: number of images that are new in this class.
        notes: sentences on what was passed over, and on what is doubtful.
        held_out: what a new class is predicted as where each of its images in turn is held out;
            None if it has one image, or the class is not new.
    """

    classifier: Classifier
    name: str
    learned: int
    notes: tuple[str, ...]
    held_out: HeldOutClass | None = None

    def describe(self) -> str:
        """What was learned, as a sentence without its full stop."""
        said = f"class '{self.name}' learned from {counted(self.learned, 'image')}"
        return f"{said}; {self.held_out.describe()}" if self.held_out else said


def add_class(
    classifier: Classifier, name: str, images: Tensor, files: Sequence[str] = ()
) -> Growth:
    """Learns a new class; other classes keep their parameters, unless images move between classes.

    An image that is a training image of another class moves to the new one.

    Args:
        classifier: the classifier, which is not changed.
        name: name of the new class.
        images: its images, uint8 ``[K, C, S, S]``.
        files: their K file names; may be empty.

    Raises:
        ConfigurationError: if the name is taken or empty, there is no image, or another class would
            lose its last image.
    """
    if not name.strip():
        raise ConfigurationError("the new class has no name: give it one")
    if name in classifier.class_names:
        raise ConfigurationError(f"the class '{name}' exists already: choose another name")
    return _Growing(classifier, name, images, files).new_class()


def add_images(
    classifier: Classifier, name: str, images: Tensor, files: Sequence[str] = ()
) -> Growth:
    """Learns more images of a class, as where a person corrects labels; solves for all classes.

    A training image of another class moves. One of this class, or an image that is nearly the same
    as one of this class, is left out if it is predicted rightly. An image that is still predicted
    as another class afterwards counts twice, and then three times.

    Args:
        classifier: the classifier, which is not changed.
        name: name of the class.
        images: its new images, uint8 ``[K, C, S, S]``.
        files: their K file names; may be empty.

    Raises:
        ConfigurationError: if there is no such class or no image, or another class would lose its
            last image.
    """
    if name not in classifier.class_names:
        raise ConfigurationError(f"there is no class '{name}': add it as a new one")
    return _Growing(classifier, name, images, files).more_images()


class _Growing:
    """Images that a class is to learn, and those of them that are to be learned."""

    def __init__(
        self, classifier: Classifier, name: str, images: Tensor, files: Sequence[str]
    ) -> None:
        if not len(images):
            raise ConfigurationError(f"there is no image of '{name}': give at least one")
        self.classifier, self.name = classifier, name
        known = classifier.class_names
        self.names = known if name in known else (*known, name)
        self.label = self.names.index(name)
        self.images, self.files = images, tuple(files) or ("",) * len(images)
        with torch.no_grad():
            self.features = embed(classifier.problem.network, images)
        self.labels = classifier.labels.clone()
        self.notes: list[str] = []
        self.new = distinct(classifier.pretrained(self.features))
        self.moved, self.again = self._move()

    def new_class(self) -> Growth:
        """The classifier with the new class beside the others."""
        self._say_alike(leave_out=torch.zeros_like(self.new))
        grown = self._learned(self.new.nonzero().flatten())
        own = self.features[self.new]
        alone = len(own) > 1 and not self.moved.any()
        held_out = hold_out_class(grown, len(own)) if alone else None
        if len(own):
            self.notes += doubts(self.classifier, own, self.name, held_out)
        learned = len(own) + int(self.moved.sum())
        return Growth(grown, self.name, learned, tuple(self.notes), held_out)

    def more_images(self) -> Growth:
        """The classifier with more images of a class."""
        right = self.classifier.judge(self.features).probabilities.argmax(1) == self.label
        self._passed_over(int((self.again & right).sum()), "in")
        self._say_alike(leave_out=right)
        asked = self.new | self.moved | (self.again & ~right)
        if not asked.any():
            return Growth(self.classifier, self.name, 0, tuple(self.notes))
        rows = self.new.nonzero().flatten()
        grown, wrong = self._asked(rows, asked)
        for _ in range(_TIMES - 1):
            if len(wrong):
                rows = torch.cat([rows, wrong])
                grown, wrong = self._asked(rows, asked)
        if len(wrong):
            self.notes.append(
                f"{counted(len(wrong), 'image')} of '{self.name}' {_is(len(wrong))} still "
                "predicted as another class: add more images like this"
            )
        return Growth(grown, self.name, int(asked.sum()), tuple(self.notes))

    def _asked(self, rows: Tensor, asked: Tensor) -> tuple[Classifier, Tensor]:
        """What has learned these rows, and which of the images asked for it predicts wrongly."""
        grown = self._learned(rows)
        found = grown.judge(self.features).probabilities.argmax(1)
        return grown, (asked & (found != self.label)).nonzero().flatten()

    def _move(self) -> tuple[Tensor, Tensor]:
        """Training images of other classes get the label.

        Returns:
            Which of the images are among these, and which are of the class already, ``[K]`` each.
        """
        same = Neighbours(self.classifier).same(self.features) & self.new.unsqueeze(1)
        self.new &= ~same.any(1)
        again = same & (self.labels == self.label)
        moved = same & (self.labels != self.label)
        for label in self.labels[moved.any(0)].unique().tolist():
            own = moved & (self.labels == label)
            left = int((self.labels == label).sum()) - int(own.any(0).sum())
            number, other = int(own.any(1).sum()), self.names[label]
            if not left:
                raise ConfigurationError(
                    f"'{other}' was learned from these images and would have none without them: "
                    f"choose other images for '{self.name}'"
                )
            self.notes.append(
                f"{counted(number, 'training image')} of '{other}' moved to '{self.name}'"
            )
        self.labels[moved.any(0)] = self.label
        return moved.any(1), again.any(1)

    def _passed_over(self, number: int, how: str) -> None:
        if number:
            verb = "it is" if number == 1 else "they are"
            self.notes.append(
                f"{counted(number, 'image')} passed over: {verb} {how} '{self.name}' already"
            )

    def _say_alike(self, leave_out: Tensor) -> None:
        """Near-duplicates of training images: of another class they are doubtful.

        Args:
            leave_out: which images are left out if their own class has a near-duplicate, ``[K]``.
        """
        pictures, rows = self.classifier.album.pictures(self.images)
        if not len(rows):
            return
        old = len(rows)
        labels = torch.cat([self.labels[rows], torch.full((len(self.images),), self.label)])
        groups, across = near_duplicates(pictures, labels)
        alike = (groups[old:] < old) & leave_out & self.new
        self.new &= ~alike
        self._passed_over(int(alike.sum()), "nearly the same as images in")
        pairs = [(a, b - old) for a, b in across if a < old <= b and self.new[b - old]]
        for other, number in Counter(self.names[int(labels[a])] for a, _ in pairs).items():
            self.notes.append(
                f"{counted(number, 'image')} of '{self.name}' {_is(number)} nearly the same as "
                f"images of '{other}': check which class is right"
            )

    def _learned(self, rows: Tensor) -> Classifier:
        """A copy that has learned the images of these rows; a row may be there several times."""
        old = self.classifier
        features = torch.cat([old.features, self.features[rows]])
        labels = torch.cat([self.labels, torch.full((len(rows),), self.label)])
        album = old.album.plus(self.images[rows], [self.files[row] for row in rows.tolist()])
        alone = self.label == len(old.class_names) and not self.moved.any()
        grown = copy.copy(old)
        grown.learn(features, labels, self.names, album, first=self.label if alone else 0)
        return grown


def _is(number: int) -> str:
    return "is" if number == 1 else "are"
