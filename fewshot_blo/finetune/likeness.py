"""Whether an image is like those of any class at all."""

from __future__ import annotations

import torch
from torch import Tensor

_LEVEL = 0.05


def own_likenesses(features: Tensor, labels: Tensor) -> Tensor:
    """How like each training image is to the others of its class, ascending.

    Images that are alone in their class have no others.

    Args:
        features: of the pretrained network, ``[M, D]``.
        labels: ``[M]``.
    """
    x = _directions(features, features)
    counts = torch.bincount(labels)[labels]
    sums = torch.zeros(int(labels.max()) + 1, x.shape[1]).to(x).index_add(0, labels, x)
    others = sums[labels] - x
    return torch.cosine_similarity(x, others, dim=1)[counts > 1].sort().values


def p_values(new: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Share of training images that are no more like their class than a new one is like any.

    Source: conformal prediction, Vovk et al., "Algorithmic Learning in a Random World"; the score
    is the cosine of the angle to the class mean, as seen from the mean of all images.

    Args:
        new: features of new images, ``[B, D]``.
        features: of the training images, ``[M, D]``.
        labels: of these, ``[M]``.
    """
    known = own_likenesses(features, labels)
    x = _directions(features, features)
    means = torch.zeros(int(labels.max()) + 1, x.shape[1]).to(x).index_add(0, labels, x)
    angles = torch.nn.functional.normalize(means) @ _directions(new, features).T
    below = torch.searchsorted(known, angles.amax(0).contiguous(), right=True)
    return (below + 1) / (len(known) + 1)


def is_known(p: Tensor, images: int) -> Tensor:
    """Whether p-values are above 5 %, or above the lowest that so many training images can give."""
    return p >= max(_LEVEL, 1.5 / (images + 1))


def _directions(x: Tensor, features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x - features.mean(0))
