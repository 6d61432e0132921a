"""Detects images of none of the classes, by conformal p-values of their similarity."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot_blo.finetune.cross_validation import folds

_LEVEL = 0.05


def p_values(new: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Conformal p-values ``[B]`` of new images.

    The p-value is the share of held-out training images whose score is at most that of the new
    image, which is counted as one of them. Training images that are alone in their class are never
    held out; if no image can be held out, every p-value is 1.

    Args:
        new: features of the new images, ``[B, D]``.
        features: features of the training images, ``[M, D]``.
        labels: labels of the training images, ``[M]``.

    Source: conformal prediction, Vovk et al., "Algorithmic Learning in a Random World".
    """
    known = held_out_scores(features, labels)
    below = torch.searchsorted(known, _scores(new, features, labels), right=True)
    return (below + 1) / (len(known) + 1)


def held_out_scores(features: Tensor, labels: Tensor) -> Tensor:
    """Scores of the held-out training images with respect to the others, ascending.

    Args:
        features: features of the training images, ``[M, D]``.
        labels: labels of the training images, ``[M]``.
    """
    scores = [features.new_empty(0)]
    for part in folds(labels):
        kept = torch.ones(len(labels), dtype=torch.bool)
        kept[part] = False
        scores.append(_scores(features[part], features[kept], labels[kept]))
    return torch.cat(scores).sort().values


def is_known(p: Tensor, images: int) -> Tensor:
    """Whether p-values ``[B]`` are at least 5 %, and above the lowest possible p-value.

    Args:
        p: p-values.
        images: M, number of training images; the lowest possible p-value is 1 / (M + 1).
    """
    return p >= max(_LEVEL, 1.5 / (images + 1))


def _scores(new: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Similarity of each new image to its nearest class and image, ``[B]``.

    It is the sum of three cosines: to the nearest image, and to the nearest class mean of raw and
    of centred features. Each of them misses some outliers that another one detects.
    """
    scores = (F.normalize(new) @ F.normalize(features).T).amax(1)
    for origin in (torch.zeros_like(features[0]), features.mean(0)):
        sums = features.new_zeros(int(labels.max()) + 1, features.shape[1])
        sums.index_add_(0, labels, F.normalize(features - origin))
        scores = scores + (F.normalize(new - origin) @ F.normalize(sums).T).amax(1)
    return scores
