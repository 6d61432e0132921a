"""Signs that the images of a new class are wrong: those of a known class, or of many classes."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_blo.finetune.classifier import Classifier
from fewshot_blo.finetune.neighbours import Neighbours
from fewshot_blo.tasks.reading.walk import counted

_MOST = 20
"""Largest number of images that are held out one by one."""
_LIKE_KNOWN, _LIKE_OWN, _SURE = 0.85, 0.7, 0.95
"""Likeness to a known class above which images are taken for its own: in units of that within the
class, and of that among themselves; for one image, its probability. On photographs of Tiny-ImageNet
(``benchmarks/growing.py``) this warns of 56 % of the sets of 8 images of a known class and of 6 %
of those of a new one; of 3 images, 66 % and 22 %; of one, 40 % and 15 %."""
_UNLIKE, _SEVERAL = 0.5, 3
"""Likeness among images, in units of that within the known classes, below which they may belong to
many classes. This warns of a third of the sets of images of five classes, and of 8 % of the sets of
3 images and none of those of 8 images of one new class."""


@dataclass(frozen=True)
class HeldOutClass:
    """What images of a new class are predicted as where each in turn is held out.

    Attributes:
        name: name of the class.
        labels: predicted labels, one a held-out image.
        right: number of images that are predicted as the class.
    """

    name: str
    labels: tuple[int, ...]
    right: int

    def describe(self) -> str:
        """The number of right ones, as a sentence without its full stop."""
        return f"held out one by one, {self.right} of {len(self.labels)} are recognised"


@torch.no_grad()
def hold_out_class(grown: Classifier, number: int) -> HeldOutClass:
    """Holds out each of the last training images, up to 20, which are those of the last class.

    Args:
        grown: a classifier that has just learned a class beside the others.
        number: number of images of this class, at least 2.
    """
    new = len(grown.class_names) - 1
    first = len(grown.labels) - number
    trial, found = copy.copy(grown), []
    for row in range(first, first + min(number, _MOST)):
        rest = torch.arange(len(grown.labels)) != row
        trial.params = grown.solved(grown.features[rest], grown.labels[rest], new)
        found.append(int(trial.logits(grown.features[row : row + 1]).argmax()))
    return HeldOutClass(grown.class_names[-1], tuple(found), found.count(new))


@torch.no_grad()
def doubts(
    classifier: Classifier, features: Tensor, name: str, held_out: HeldOutClass | None
) -> list[str]:
    """Sentences on what looks wrong about a new class.

    Two signs are looked for. The images are those of a known class: most are predicted as one
    class, they are about as like its images as these are like each other, and held out one by one
    they are predicted as this class more often than as the new one. Or they belong to many classes:
    they are hardly more like each other than images of different classes are.

    Args:
        classifier: the classifier before it learns the class.
        features: inputs of the head for the images of the class, ``[K, D]``.
        name: name of the class.
        held_out: predictions of images that are held out; None if there were too few.
    """
    probabilities = classifier.judge(features).probabilities
    labels = probabilities.argmax(1)
    guess = int(labels.mode().values)
    number = int((labels == guess).sum())
    sure = float(probabilities[labels == guess, guess].mean())
    alike, like_guess = _likeness(classifier, features, guess)
    if held_out:
        confused = 2 * number >= len(labels) and held_out.labels.count(guess) > held_out.right
        found = confused and like_guess >= max(_LIKE_KNOWN, _LIKE_OWN * alike)
    else:
        found = sure >= _SURE and like_guess >= 1
    known = classifier.class_names[guess]
    if found:
        return [
            f"{number} of the {counted(len(labels), 'image')} of '{name}' {_is(number)} predicted "
            f"as the class '{known}' ({100 * sure:.0f} % on average) and {_is(number)} as like its "
            f"images: check that the images of '{name}' are right; if they are of '{known}', add "
            "them to that class instead"
        ]
    if len(labels) >= _SEVERAL and alike < _UNLIKE:
        return [
            f"the {len(labels)} images of '{name}' are hardly more like each other than images of "
            "different classes are: check that all are right, or add more of them"
        ]
    return []


def _likeness(classifier: Classifier, features: Tensor, guess: int) -> tuple[float, float]:
    """How like new images are to each other, and to a class.

    Both are mean cosine similarities: 0 is that of images of different classes. 1 is that of
    different images of one class; for the second number, of this class if it has several images.
    """
    neighbours = Neighbours(classifier)
    new, own, labels = neighbours.centred(features), neighbours.own, classifier.labels
    table = own @ own.T
    others = ~torch.eye(len(own), dtype=torch.bool)
    same = (labels.unsqueeze(1) == labels) & others
    between = float(table[labels.unsqueeze(1) != labels].mean())
    within = float(table[same].mean()) if same.any() else 1.0
    of_guess = same & (labels == guess)
    inside = float(table[of_guess].mean()) if of_guess.any() else within
    apart = ~torch.eye(len(new), dtype=torch.bool)
    alike = float((new @ new.T)[apart].mean()) if len(new) > 1 else within
    like_guess = float((new @ own[labels == guess].T).mean())
    return _share(alike, between, within), _share(like_guess, between, inside)


def _share(value: float, zero: float, one: float) -> float:
    return (value - zero) / max(one - zero, 1e-6)


def _is(number: int) -> str:
    return "is" if number == 1 else "are"
