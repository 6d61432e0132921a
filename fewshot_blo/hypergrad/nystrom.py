"""The Nyström approximation of the Hessian by some of its columns, inverted in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_blo.bilevel import TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad.systems import MatVec


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
        seed: the columns are drawn by it, the same at every call.

    Source: Hataya & Yamada (arXiv 2302.09726), and the formula of its published code.
    """

    rank: int = 10
    damping: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.damping > 0:
            raise ConfigurationError(
                f"Nystrom: rank is {self.rank} and must be at least 1, damping is {self.damping} "
                "and must be positive"
            )

    def __call__(self, matvec: MatVec, b: TaskParams) -> TaskParams:
        """Solves with the approximation."""
        flat = _flat(b)
        chosen = self._columns(flat.shape[1])
        columns = torch.stack([_flat(matvec(_unit(index, b))) for index in chosen], 2)
        rows = torch.stack([columns[:, index] for index in chosen], 1)
        small = self.damping * rows + columns.mT @ columns
        # Where small is singular its null space is that of C, which multiplies the solution: a
        # trace of ridge on it makes the system regular and changes nothing else.
        size = small.diagonal(dim1=1, dim2=2).mean(1)
        eps = torch.finfo(small.dtype).eps
        identity = torch.eye(len(chosen), dtype=small.dtype, device=small.device)
        ridge = (eps * size).clamp(min=torch.finfo(small.dtype).tiny)
        small = small + ridge[:, None, None] * identity
        within = torch.linalg.solve_ex(small, columns.mT @ flat[:, :, None])[0]
        return _like((flat - (columns @ within)[:, :, 0]) / self.damping, b)

    def _columns(self, count: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed)
        found: list[int] = torch.randperm(count, generator=generator)[: self.rank].tolist()
        return found


def _flat(x: TaskParams) -> Tensor:
    """All parameters of a task in a row, ``[T, D]``."""
    return torch.cat([p.reshape(len(p), -1) for p in x.values()], 1)


def _like(flat: Tensor, like: TaskParams) -> TaskParams:
    """``[T, D]`` as named parameters ``[T, ...]``."""
    sizes = [p[0].numel() for p in like.values()]
    parts = torch.split(flat, sizes, 1)
    return {n: x.reshape(p.shape) for (n, p), x in zip(like.items(), parts, strict=True)}


def _unit(index: int, like: TaskParams) -> TaskParams:
    """1 at one parameter of every task and 0 at the others."""
    flat = torch.zeros_like(_flat(like))
    flat[:, index] = 1
    return _like(flat, like)
