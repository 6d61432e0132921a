"""The detector of images of none of the classes, as a module for export."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewshot_blo.finetune.classifier import Classifier


class Rejection(nn.Module):
    """Conformal p-values of the evidence of images, as ``likeness.Scores`` computes them.

    Args:
        values: evidence of held-out images of known classes, ascending, ``[A]``.
        p_values: p-values of an image with more evidence than none, one, ... all of them,
            ``[A + 1]``.
        threshold: smallest p-value of a known image.
    """

    values: Tensor
    p_values: Tensor

    def __init__(self, values: Tensor, p_values: Tensor, threshold: float) -> None:
        super().__init__()
        self.register_buffer("values", values)
        self.register_buffer("p_values", p_values)
        self.threshold = threshold

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """P-values ``[B]``, and whether images are of one of the classes ``[B]``.

        Args:
            logits: divided by the temperature, ``[B, N]``.
        """
        below = (self.values <= logits.logsumexp(1, keepdim=True)).sum(1)
        p = self.p_values[below]
        return p, p >= self.threshold


@torch.no_grad()
def rejection(classifier: Classifier) -> Rejection | None:
    """The classifier's detector as a module; None if it has none that could reject an image."""
    known = classifier.known
    if not known.detects:
        return None
    values = known.evidence.values
    lowest = values.new_full((1,), -torch.inf)
    p = known.evidence.p_values(torch.cat([lowest, values]))
    accepted = p[known.is_known(p)]
    return Rejection(values, p, float(accepted.min()))
