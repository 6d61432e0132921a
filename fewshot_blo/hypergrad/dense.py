"""Linear systems of few parameters, by all eigenvalues of their matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_blo.bilevel import TaskParams, task_flat, task_like
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad.systems import MatVec
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import NonNegative

MOST_PARAMETERS = 2000
"""Parameters of a task up to which its matrix is built."""

FEW = 100
"""Parameters of a task up to which this is the solver where none is named."""


@checked
@dataclass(frozen=True)
class Dense:
    """The solution by the eigenvalues of H, from one product with it for each parameter.

    H may be ill-conditioned, indefinite or singular: directions whose eigenvalue is rounding,
    below n roundings of the largest, are left out of q.

    Attributes:
        damping: added to the diagonal of H.
    """

    damping: NonNegative = 0.0

    def __call__(self, matvec: MatVec, b: TaskParams) -> TaskParams:
        """Builds and decomposes H.

        Raises:
            ConfigurationError: if a task has more than 2000 parameters.
        """
        flat = task_flat(b)
        h = _matrix(matvec, b, flat).double()
        n = flat.shape[1]
        # A decomposition of NaN raises: q is NaN instead, which is noticed.
        finite = h.isfinite().flatten(1).all(1)[:, None, None]
        h = torch.where(finite, 0.5 * (h + h.mT) + self.damping * torch.eye(n).to(h), 0)
        values, axes = torch.linalg.eigh(h)
        largest = values.abs().amax(1, keepdim=True)
        kept = values.abs() > n * torch.finfo(flat.dtype).eps * largest
        inverse = torch.where(kept, 1 / torch.where(kept, values, 1), 0)
        q = axes @ (inverse[..., None] * (axes.mT @ flat.double()[..., None]))
        return task_like(torch.where(finite[..., 0], q[..., 0], torch.nan), b)


def _matrix(matvec: MatVec, like: TaskParams, flat: Tensor) -> Tensor:
    """H, ``[T, n, n]``."""
    n = flat.shape[1]
    if n > MOST_PARAMETERS:
        raise ConfigurationError(
            f"Dense: a task has {n} parameters, and the matrix is built for at most "
            f"{MOST_PARAMETERS}: use MINRES or ConjugateGradient"
        )
    columns = []
    for unit in torch.eye(n).to(flat):
        product = matvec(task_like(unit.expand_as(flat), like))
        columns.append(task_flat({name: product[name] for name in like}))
    return torch.stack(columns, 2).detach()
