"""Prototypes refined by soft k-means on the queries."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fewshot_blo.heads.transductive import Rows, TransductiveHead, squared_distances
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Natural, Positive


@checked
@dataclass(frozen=True)
class SoftKMeansHead(TransductiveHead):
    """Class means p_n, refined by soft k-means in which the queries are the unlabelled images.

    ``z_jn = softmax_n(-s |x_j - p_n|²)`` for each query and ``p_n = (Σ_i y_in x_i + Σ_j z_jn x_j) /
    (Σ_i y_in + Σ_j z_jn)`` over support rows i and queries j. Logits are ``-s |x - p_n|²``.

    Source: Ren et al., "Meta-Learning for Semi-Supervised Few-Shot Classification" (arXiv
    1803.00676), the refinement "soft k-means", there with s = 1, one step, and unlabelled images
    beside the queries.

    Attributes:
        scale: s, an inverse temperature.
        steps: number of refinements; 0 leaves the class means of the support set.
    """

    scale: Positive = 10.0
    steps: Natural = 1

    def scores(self, rows: Rows) -> Tensor:
        """Minus scaled squared distances to the refined class means, ``[T, B, N]``."""
        centres = rows.class_means
        for _ in range(self.steps):
            assigned = rows.softmax(-self.scale * squared_distances(rows.queries, centres))
            centres = rows.means(assigned)
        return -self.scale * squared_distances(rows.queries, centres)
