"""Assignments of rows to classes whose sizes are given: Sinkhorn's problem, solved to rounding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_blo.heads.linear_systems import solve

_STEPS = 12
_LENGTHS = (1.0, 0.25, 0.0625)


@dataclass(frozen=True)
class Sizes:
    """Sizes that the classes of T tasks must have.

    Attributes:
        real: 1 for the rows that exist, ``[T, B]``.
        present: the classes to which rows are assigned, ``[T, 1, N]``.
        sizes: sums of the assignments to each class, ``[T, N]``; zero for other classes.
    """

    real: Tensor
    present: Tensor
    sizes: Tensor

    @classmethod
    def equal(cls, real: Tensor, present: Tensor) -> Sizes:
        """As many rows for each class."""
        share = present / present.sum(2, keepdim=True)
        return cls(real, present, share.squeeze(1) * real.sum(1, keepdim=True))


def balanced(scores: Tensor, sizes: Sizes, start: Tensor) -> tuple[Tensor, Tensor]:
    """Log assignments ``log softmax_n(s_in + g_n)``, where g gives the classes their sizes.

    The assignments are the optimal transport plan with entropic regularisation, which Sinkhorn's
    iteration computes (Cuturi, arXiv 1306.0895): rows sum to 1 and columns to the sizes. g
    minimises the convex ``f(g) = Σ_i logsumexp_n(s_in + g_n) - Σ_n size_n g_n``. Each step here
    takes the best of a step of Sinkhorn's iteration, which always lowers f, and of Newton steps of
    three lengths, which converge quadratically. Derivatives are those of the solution, by the
    implicit function theorem, whatever the number of steps.

    Args:
        scores: s, ``[T, B, N]``.
        sizes: sizes of the classes.
        start: g to start from, ``[T, N]``, such as a solution for similar scores.

    Returns:
        Log assignments ``[T, B, N]``, -inf for classes that are not present, and g ``[T, N]``.
    """
    scores = scores.masked_fill(~sizes.present, -torch.inf)
    with torch.no_grad():
        g = start
        for _ in range(_STEPS):
            g = _better(scores, sizes, g)
        polished = g + _newton(scores, sizes, g)
        nearer = _residual(scores, sizes, polished) < _residual(scores, sizes, g)
        g = torch.where(nearer, polished, g)
    step = _newton(scores, sizes, g)
    solution = g + (step - step.detach())
    return (scores + solution.unsqueeze(1)).log_softmax(2), g


def _better(scores: Tensor, sizes: Sizes, g: Tensor) -> Tensor:
    """The candidate of a step with the lowest f, ``[T, N]``."""
    newton = _newton(scores, sizes, g)
    present = sizes.present.squeeze(1)
    ratio = torch.where(present, sizes.sizes, 1) / torch.where(present, _sums(scores, sizes, g), 1)
    candidates = torch.stack([g + ratio.log(), *(g + length * newton for length in _LENGTHS)])
    total = (scores + candidates.unsqueeze(2)).logsumexp(3)
    value = (total * sizes.real).sum(2) - (candidates * sizes.sizes).sum(2)
    best = value.nan_to_num(torch.inf, torch.inf, torch.inf).argmin(0)
    chosen = best.reshape(1, -1, 1).expand(1, *g.shape)
    return candidates.gather(0, chosen).squeeze(0)


def _sums(scores: Tensor, sizes: Sizes, g: Tensor) -> Tensor:
    """Sums of the assignments to each class, ``[T, N]``."""
    return (_assigned(scores, g) * sizes.real.unsqueeze(2)).sum(1)


def _residual(scores: Tensor, sizes: Sizes, g: Tensor) -> Tensor:
    """Largest deviation from the sizes, ``[T, 1]``."""
    return (_sums(scores, sizes, g) - sizes.sizes).abs().amax(1, keepdim=True)


def _assigned(scores: Tensor, g: Tensor) -> Tensor:
    return (scores + g.unsqueeze(1)).softmax(2)


def _newton(scores: Tensor, sizes: Sizes, g: Tensor) -> Tensor:
    """The Newton step of f, ``[T, N]``; zero for classes that are not present.

    The Hessian ``diag(m) - P' P`` is singular along ``g + constant``, which changes no assignment:
    adding a matrix of equal numbers leaves the step without such a part.
    """
    p = _assigned(scores, g)
    weighted = p * sizes.real.unsqueeze(2)
    sums = weighted.sum(1)
    hessian = torch.diag_embed(sums) - p.transpose(1, 2) @ weighted
    present = sizes.present.to(p.dtype)
    count = sizes.real.sum(1)[:, None, None]
    # Rows that all belong to one class for certain have no curvature.
    floor = torch.finfo(p.dtype).eps * count + ~sizes.present
    system = hessian + torch.diag_embed(floor.squeeze(1))
    system = system + count * present * present.transpose(1, 2) / present.sum(2, keepdim=True) ** 2
    step: Tensor = solve(system, (sizes.sizes - sums).unsqueeze(2)).squeeze(2)
    return step
