"""LaplacianShot: distances to class means, with equal predictions for neighbouring queries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_blo.heads.bd_cspn import rectified_means
from fewshot_blo.heads.transductive import Rows, TransductiveHead, squared_distances
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, Natural, NonNegative, Positive


@checked
@dataclass(frozen=True)
class LaplacianShotHead(TransductiveHead):
    """``Y ← softmax(-A + λ W Y)`` with squared distances A of the queries to the class means.

    ``w_ij`` is 1 if query j is among the nearest neighbours of query i, and otherwise 0; W is a
    constant to derivatives. It starts from ``Y = softmax(-A)``. There is no term for the sizes of
    the classes.

    Source: Ziko et al., "Laplacian Regularized Few-Shot Learning" (arXiv 2006.15486), algorithm 1
    and the authors' code, whose k = 3 nearest neighbours include the query itself; there features
    are centred and of unit length (the problem's settings ``centre`` and ``unit``). λ is chosen on
    validation classes there, from 0.1 to 1.

    Attributes:
        lam: λ, weight of the neighbours.
        neighbours: number of nearest neighbours of a query, without itself.
        steps: number of updates of Y; all of them are taken.
        rectified: whether class means are those of ``BDCSPNHead``; otherwise those of the support
            set.
        scale: inverse temperature of the rectified means.
    """

    lam: NonNegative = 0.7
    neighbours: Counting = 2
    steps: Natural = 20
    rectified: bool = True
    scale: Positive = 10.0

    def scores(self, rows: Rows) -> Tensor:
        """``-A + λ W Y`` of the last step, ``[T, B, N]``."""
        means = rectified_means(rows, self.scale) if self.rectified else rows.class_means
        own = -squared_distances(rows.queries, means)
        neighbours, scores = self._neighbours(rows), own
        for _ in range(self.steps):
            scores = own + self.lam * (neighbours @ rows.softmax(scores))
        return scores

    def _neighbours(self, rows: Rows) -> Tensor:
        """W, ``[T, B, B]``; a padded query is no neighbour."""
        queries = rows.queries.detach()
        itself = torch.eye(queries.shape[1], dtype=torch.bool, device=queries.device)
        apart = itself | (rows.real == 0).unsqueeze(1)
        distances = squared_distances(queries, queries).masked_fill(apart, torch.inf)
        count = min(self.neighbours, queries.shape[1])
        nearest = distances.topk(count, 2, largest=False)
        found = nearest.values.isfinite().to(queries.dtype)
        return torch.zeros_like(distances).scatter(2, nearest.indices, found)
