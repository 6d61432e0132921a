"""The detector of images of none of the classes, as a module for export."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot_blo.finetune.classifier import Classifier
from fewshot_blo.finetune.likeness import held_out_scores, is_known


class Rejection(nn.Module):
    """Conformal p-values of features of the pretrained network, as in ``likeness.p_values``.

    All that depends on the training images alone is computed once.

    Args:
        features: features of the training images, ``[M, D]``.
        labels: labels of the training images, ``[M]``.
        held_out: scores of the held-out training images, ``[H]``.

    Attributes:
        threshold: smallest p-value of a known image.
    """

    origins: Tensor
    images: Tensor
    means: Tensor
    held_out: Tensor

    def __init__(self, features: Tensor, labels: Tensor, held_out: Tensor) -> None:
        super().__init__()
        origins = torch.stack([torch.zeros_like(features[0]), features.mean(0)])
        centred = F.normalize(features - origins[:, None], dim=-1)
        sums = features.new_zeros(2, int(labels.max()) + 1, features.shape[1])
        means = F.normalize(sums.index_add(1, labels, centred), dim=-1)
        self.register_buffer("origins", origins)
        self.register_buffer("images", centred[0])
        self.register_buffer("means", means)
        self.register_buffer("held_out", held_out)
        attainable = torch.arange(1, len(held_out) + 2) / (len(held_out) + 1)
        self.threshold = float(attainable[is_known(attainable, len(labels))].min())

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """P-values ``[B]``, and whether images are of one of the classes ``[B]``.

        Args:
            features: features of images, ``[B, D]``.
        """
        nearest = (F.normalize(features) @ self.images.T).amax(1)
        centred = F.normalize(features - self.origins[:, None], dim=-1)
        scores = nearest + (centred @ self.means.transpose(1, 2)).amax(2).sum(0)
        below = (self.held_out <= scores[:, None]).sum(1)
        p = (below + 1) / (len(self.held_out) + 1)
        # Halfway to the next lower p-value: independent of rounding.
        return p, p > self.threshold - 0.5 / (len(self.held_out) + 1)


@torch.no_grad()
def rejection(classifier: Classifier) -> Rejection | None:
    """The classifier's detector as a module; None if it has none that could reject an image."""
    features = classifier.pretrained(classifier.features)
    held_out = held_out_scores(features, classifier.labels)
    if not len(held_out):  # Each class has one image: every p-value is 1.
        return None
    return Rejection(features, classifier.labels, held_out)
