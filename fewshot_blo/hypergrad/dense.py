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
        return decomposed(matvec, b, self.damping).solve(b)


@dataclass(frozen=True, eq=False)
class Decomposed:
    """The eigenvalues of the symmetric H of each task.

    Attributes:
        values: in ascending order, ``[T, n]``.
        axes: their unit vectors in columns, ``[T, n, n]``.
        finite: of which tasks H is finite, ``[T]``; values of others are zero.
        rounding: below which an eigenvalue is rounding, ``[T]``.
    """

    values: Tensor
    axes: Tensor
    finite: Tensor
    rounding: Tensor

    def solve(self, b: TaskParams) -> TaskParams:
        """``H^-1 b`` without directions whose eigenvalue is rounding; NaN where H is not finite."""
        kept = self.values.abs() > self.rounding[:, None]
        inverse = torch.where(kept, 1 / torch.where(kept, self.values, 1), 0)
        q = self.axes @ (inverse[..., None] * (self.axes.mT @ task_flat(b).double()[..., None]))
        return task_like(torch.where(self.finite[:, None], q[..., 0], torch.nan), b)


def decomposed(matvec: MatVec, like: TaskParams, damping: float = 0.0) -> Decomposed:
    """Builds and decomposes H, ``like`` parameters.

    Raises:
        ConfigurationError: if a task has more than 2000 parameters.
    """
    flat = task_flat(like)
    h = _matrix(matvec, like, flat).double()
    n = flat.shape[1]
    # A decomposition of NaN raises.
    finite = h.isfinite().flatten(1).all(1)
    h = torch.where(finite[:, None, None], 0.5 * (h + h.mT) + damping * torch.eye(n).to(h), 0)
    values, axes = torch.linalg.eigh(h)
    rounding = n * torch.finfo(flat.dtype).eps * values.abs().amax(1)
    return Decomposed(values, axes, finite, rounding)


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
