"""Whether an image is like those of any class at all."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot_blo.finetune.cross_validation import folds

_LEVEL = 0.05


def p_values(new: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Share of training images that, held out, are no more like any class than a new one is.

    Training images that are alone in their class are never held out, and without others every
    p-value is 1.

    Args:
        new: features of new images, ``[B, D]``.
        features: of the training images, ``[M, D]``.
        labels: of these, ``[M]``.

    Source: conformal prediction, Vovk et al., "Algorithmic Learning in a Random World".
    """
    known = held_out_scores(features, labels)
    below = torch.searchsorted(known, _scores(new, features, labels), right=True)
    return (below + 1) / (len(known) + 1)


def held_out_scores(features: Tensor, labels: Tensor) -> Tensor:
    """Score of each training image among the others, ascending."""
    scores = [features.new_empty(0)]
    for part in folds(labels):
        kept = torch.ones(len(labels), dtype=torch.bool)
        kept[part] = False
        scores.append(_scores(features[part], features[kept], labels[kept]))
    return torch.cat(scores).sort().values


def is_known(p: Tensor, images: int) -> Tensor:
    """Whether p-values are above 5 %, or above the lowest that so many training images can give."""
    return p >= max(_LEVEL, 1.5 / (images + 1))


def _scores(new: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """How like each new image is to its nearest class and image, ``[B]``.

    The sum of three cosines: to the nearest class mean, seen from zero and from the mean of all
    images, and to the nearest image. Each misses strangers that another finds.
    """
    scores = (F.normalize(new) @ F.normalize(features).T).amax(1)
    for origin in (torch.zeros_like(features[0]), features.mean(0)):
        sums = features.new_zeros(int(labels.max()) + 1, features.shape[1])
        sums.index_add_(0, labels, F.normalize(features - origin))
        scores = scores + (F.normalize(new - origin) @ F.normalize(sums).T).amax(1)
    return scores
