"""BD-CSPN: class means rectified by the queries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_blo.heads.head import normalize
from fewshot_blo.heads.transductive import Rows, TransductiveHead, row_mean, weighted_means
from fewshot_blo.objectives.cross_entropy import one_hot
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Positive


@checked
@dataclass(frozen=True)
class BDCSPNHead(TransductiveHead):
    """Cosines to class means over the support set and the queries that are nearest to each class.

    The queries are shifted by the difference of the mean support and the mean query feature. Each
    belongs to the class whose mean p_n over the support set has the largest cosine. The rectified
    mean of class n is over its support rows and these queries, with weights proportional to
    ``exp(s cos(x, p_n))``. Logits are s times the cosines of the queries, not shifted, with it. To
    which class a query belongs is a constant to derivatives.

    Source: Liu et al., "Prototype Rectification for Few-Shot Learning" (arXiv 1911.10713), with all
    queries in place of the nearest few of each class, as in the public implementations.

    Attributes:
        scale: s, an inverse temperature.
    """

    scale: Positive = 10.0

    def scores(self, rows: Rows) -> Tensor:
        """Scaled cosines with the rectified means, ``[T, B, N]``."""
        means = normalize(rectified_means(rows, self.scale))
        return self.scale * (normalize(rows.queries) @ means.transpose(1, 2))


def rectified_means(rows: Rows, scale: float) -> Tensor:
    """Class means with the queries nearest to each class, ``[T, N, D]``, as in ``BDCSPNHead``."""
    shift = row_mean(rows.support, rows.known) - row_mean(rows.queries, rows.real)
    x = torch.cat([rows.support, rows.queries + shift], 1)
    cosines = normalize(x) @ normalize(rows.class_means).transpose(1, 2)
    of_queries = cosines[:, rows.support.shape[1] :].masked_fill(~rows.present, -torch.inf)
    nearest = one_hot(of_queries.argmax(2), cosines.shape[2], x.dtype)
    members = torch.cat([rows.labels, nearest * rows.real.unsqueeze(2)], 1)
    return weighted_means(members * (scale * (cosines - 1)).exp(), x)
