"""The Nyström approximation of the Hessian by some of its columns, inverted in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_blo.bilevel import TaskParams, task_flat, task_like
from fewshot_blo.hypergrad.systems import MatVec
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, Natural, Positive


@checked
@dataclass(frozen=True)
class Nystrom:
    """``q = (C M^+ C^T + ρI)^-1 b`` with k random columns C of H, and M the rows of C of those.

    By Woodbury's identity ``q = (b - C (ρM + C^T C)^+ C^T b) / ρ``: k products with H, which do
    not depend on each other, and a system of k unknowns. Exact for ``(H + ρI)^-1 b`` where k is
    at least the rank of H. H should be positive semi-definite. Memory is k times that of the
    inner parameters.

    Attributes:
        rank: k, columns; all of them where there are fewer.
        damping: ρ, positive.
        seed: columns are drawn by it for each task by itself, the same at every call, and first
            those of parameters that the right-hand side is not zero at: padding changes nothing.

    Source: Hataya & Yamada (arXiv 2302.09726), and the formula of its published code.
    """

    rank: Counting = 10
    damping: Positive = 0.01
    seed: Natural = 0

    def __call__(self, matvec: MatVec, b: TaskParams) -> TaskParams:
        """Solves with the approximation."""
        flat = task_flat(b)
        chosen = self._columns(b)
        units = (torch.zeros_like(flat).scatter(1, index[:, None], 1) for index in chosen.T)
        columns = torch.stack([task_flat(matvec(task_like(unit, b))) for unit in units], 2)
        rows = columns.gather(1, chosen[:, :, None].expand(-1, -1, chosen.shape[1]))
        small = self.damping * rows + columns.mT @ columns
        # Where small is singular its null space is that of C, and may be left out.
        finite = small.isfinite().flatten(1).all(1)[:, None, None]
        values, vectors = torch.linalg.eigh(torch.where(finite, small, 0))
        floor = values.shape[1] * torch.finfo(small.dtype).eps * values.amax(1, keepdim=True)
        inverse = torch.where(values > floor, 1 / values.where(values > floor, 1), 0)
        within = vectors @ (inverse[:, :, None] * (vectors.mT @ (columns.mT @ flat[:, :, None])))
        return task_like((flat - (columns @ within)[:, :, 0]) / self.damping, b)

    def _columns(self, b: TaskParams) -> Tensor:
        """Indices of k parameters of each task, ``[T, k]``."""
        flat = task_flat(b)
        # A hash of the place in its tensor, which padded classes behind it do not change.
        places = [
            torch.arange(p[0].numel(), device=flat.device) + number * 1_000_003
            for number, p in enumerate(b.values())
        ]
        hashed = ((torch.cat(places) + self.seed) * 2_654_435_761) % 2**32
        score = hashed / 2**32 + (flat != 0)
        return score.topk(min(self.rank, flat.shape[1]), 1).indices
