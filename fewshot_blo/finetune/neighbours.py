"""Which training images of a classifier are most like others, and which are the same."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fewshot_blo.finetune.classifier import Classifier

_SAME = 1e-6
"""Largest distance, 1 minus the cosine, of features of one image: rounding differs by much less."""


class Neighbours:
    """Similarities to the M training images of a classifier, by the pretrained network's features.

    Args:
        classifier: the classifier.

    Attributes:
        own: centred features of the training images, of length 1, ``[M, E]``. Their mean is
            subtracted, for features of all photographs have a large part in common.
    """

    def __init__(self, classifier: Classifier) -> None:
        self._pretrained = classifier.pretrained
        own = classifier.pretrained(classifier.features)
        self._mean = own.mean(0)
        self._plain = F.normalize(own)
        self.own = F.normalize(own - self._mean)

    def centred(self, features: Tensor) -> Tensor:
        """Centred features of length 1, ``[K, E]``, from the head's inputs ``[K, D]``."""
        return F.normalize(self._pretrained(features) - self._mean)

    def same(self, features: Tensor) -> Tensor:
        """Which training images are the same as these, ``[K, M]``."""
        return F.normalize(self._pretrained(features)) @ self._plain.T > 1 - _SAME

    def nearest(self, features: Tensor, number: int) -> list[list[tuple[int, float]]]:
        """For each image, rows of the most similar training images with their cosine similarity.

        The nearest come first. Copies of an image count once.
        """
        found = []
        for row in self.centred(features) @ self.own.T:
            chosen: list[int] = []
            for place in row.argsort(descending=True, stable=True).tolist():
                if len(chosen) == number:
                    break
                if not (self._plain[chosen] @ self._plain[place] > 1 - _SAME).any():
                    chosen.append(place)
            found.append([(place, float(row[place])) for place in chosen])
        return found


def distinct(features: Tensor) -> Tensor:
    """Which rows of ``[K, E]`` are not the same as an earlier one, ``[K]``."""
    plain = F.normalize(features)
    return ~(plain @ plain.T > 1 - _SAME).tril(-1).any(1)
