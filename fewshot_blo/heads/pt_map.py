"""PT-MAP: power transform and class centres by optimal transport."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from fewshot_blo.heads.balancing import Sizes, balanced
from fewshot_blo.heads.head import normalize
from fewshot_blo.heads.transductive import (
    Rows,
    TransductiveHead,
    row_mean,
    squared_distances,
)
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Above, AtMost, Natural, Positive, Share

_OFFSET = 1e-6


@checked
@dataclass(frozen=True)
class PTMAPHead(TransductiveHead):
    """Class centres that alternate with an optimal transport of the queries to the classes.

    Features become ``(x + 1e-6)^β``; then, if ``centred``, they are divided by their length, the
    mean of the support set is subtracted from the support set and that of the queries from the
    queries, and they are divided by their length again. Queries are assigned to centres c_n by the
    optimal transport plan of ``λ |x - c_n|²`` with entropic regularisation in which every class has
    as many queries, and ``c_n ← c_n + α (μ_n - c_n)`` with the means μ_n over the support set and
    the assigned queries. Logits are the logarithms of the last plan.

    **It assumes as many queries of each class.** Where they are not, it is worse than heads that
    do not assume it: ``AlphaTIMHead``, or heads that look at one query at a time.

    It is for features that are not negative, as after a ReLU, of any scale: what is below 0 counts
    as 0, so the problem's setting ``centre`` must be off.

    Source: Hu et al., "Leveraging the Feature Distribution in Transfer-based Few-Shot Learning"
    (arXiv 2006.03806), equations 1, 3 and 6 and the authors' code, whose settings are the defaults.

    Attributes:
        power: β, exponent of the features.
        lam: λ, inverse strength of the entropic regularisation, in (0, 200].
        rate: α, part of the way from the centres to the means in a step, in [0, 1].
        steps: number of updates of the centres.
        centred: whether features are centred and scaled to unit length after the power.
    """

    power: Positive = 0.5
    lam: Annotated[float, Above(0), AtMost(200)] = 10.0
    rate: Share = 0.2
    steps: Natural = 20
    centred: bool = True

    def scores(self, rows: Rows) -> Tensor:
        """Logarithms of the assignments, ``[T, B, N]``."""
        rows = self._transformed(rows)
        sizes = Sizes.equal(rows.real, rows.present)
        centres = rows.class_means
        assigned, start = self._assigned(rows, centres, sizes, torch.zeros_like(sizes.sizes))
        for _ in range(self.steps):
            centres = centres + self.rate * (rows.means(assigned.exp()) - centres)
            assigned, start = self._assigned(rows, centres, sizes, start)
        return assigned

    def _assigned(
        self, rows: Rows, centres: Tensor, sizes: Sizes, start: Tensor
    ) -> tuple[Tensor, Tensor]:
        return balanced(-self.lam * squared_distances(rows.queries, centres), sizes, start)

    def _transformed(self, rows: Rows) -> Rows:
        support, queries = (
            (x.clamp(min=0) + _OFFSET) ** self.power for x in (rows.support, rows.queries)
        )
        if self.centred:
            support, queries = (
                normalize(unit - row_mean(unit, counted))
                for x, counted in ((support, rows.known), (queries, rows.real))
                for unit in (normalize(x),)
            )
        return Rows(support, rows.labels, queries, rows.real)
