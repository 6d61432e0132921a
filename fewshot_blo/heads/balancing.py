"""Assignments of rows to classes whose sizes are given: Sinkhorn's problem, solved to rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_blo.heads.linear_systems import solve

_STEPS = 20
_DAMPINGS = (0.0, 0.01, 0.1)
_LENGTHS = (1.0, 0.25)


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
        share = present.squeeze(1).to(real.dtype)
        share = share / share.sum(1, keepdim=True)
        return cls(real, present, share * real.sum(1, keepdim=True))


def balanced(scores: Tensor, sizes: Sizes, start: Tensor) -> tuple[Tensor, Tensor]:
    """Log assignments ``log softmax_n(s_in + g_n)``, where g gives the classes their sizes.

    The assignments are the optimal transport plan with entropic regularisation, which Sinkhorn's
    iteration computes (Cuturi, arXiv 1306.0895): rows sum to 1 and columns to the sizes. g
    minimises the convex ``f(g) = Σ_i logsumexp_n(s_in + g_n) - Σ_n size_n g_n``. Each step here
    takes the best of a step of Sinkhorn's iteration, which always lowers f, and of damped Newton
    steps, which converge quadratically in the end. Derivatives are those of the solution, by the
    implicit function theorem, whatever the number of steps.

    Args:
        scores: s, ``[T, B, N]``.
        sizes: sizes of the classes.
        start: g to start from, ``[T, N]``, such as a solution for similar scores.

    Returns:
        Log assignments ``[T, B, N]``, -inf for classes that are not present, and g ``[T, N]``.
    """
    scores = scores.masked_fill(~sizes.present, -torch.inf)
    g = _solution(scores.detach(), sizes, start)
    (step,) = _newton(scores, sizes, g, (0.0,))
    implicit = g + (step - step.detach())
    return (scores + implicit.unsqueeze(1)).log_softmax(2), g


@torch.no_grad()
def _solution(scores: Tensor, sizes: Sizes, g: Tensor) -> Tensor:
    """g, ``[T, N]``."""
    # Nearer to the solution, f does not tell two points apart.
    enough = torch.finfo(scores.dtype).eps ** 0.5 * scores.shape[1]
    for _ in range(_STEPS):
        g = _better(scores, sizes, g)
        # On the CPU only, which avoids a host sync on a GPU.
        if g.device.type == "cpu" and bool(_residual(scores, sizes, g).max() <= enough):
            break
    polished = g + _newton(scores, sizes, g, (0.0,))[0]
    nearer = _residual(scores, sizes, polished) < _residual(scores, sizes, g)
    return torch.where(nearer, polished, g)


def _better(scores: Tensor, sizes: Sizes, g: Tensor) -> Tensor:
    """The candidate of a step with the lowest f, ``[T, N]``."""
    present, sums = sizes.present.squeeze(1), _sums(scores, sizes, g)
    ratio = torch.where(present, sizes.sizes, 1) / torch.where(present, sums, 1)
    newton = _newton(scores, sizes, g, _DAMPINGS)
    steps = [ratio.log().unsqueeze(0), *(length * newton for length in _LENGTHS)]
    tried = g + torch.cat(steps)
    total = (scores + tried.unsqueeze(2)).logsumexp(3)
    value = (total * sizes.real).sum(2) - (tried * sizes.sizes).sum(2)
    best = value.nan_to_num(torch.inf, torch.inf, torch.inf).argmin(0)
    chosen = best.reshape(1, -1, 1).expand(1, *g.shape)
    return tried.gather(0, chosen).squeeze(0)


def _sums(scores: Tensor, sizes: Sizes, g: Tensor) -> Tensor:
    """Sums of the assignments to each class, ``[T, N]``."""
    return ((scores + g.unsqueeze(1)).softmax(2) * sizes.real.unsqueeze(2)).sum(1)


def _residual(scores: Tensor, sizes: Sizes, g: Tensor) -> Tensor:
    """Largest deviation from the sizes, ``[T, 1]``."""
    return (_sums(scores, sizes, g) - sizes.sizes).abs().amax(1, keepdim=True)


def _newton(scores: Tensor, sizes: Sizes, g: Tensor, dampings: Sequence[float]) -> Tensor:
    """Newton steps of f for each damping, ``[dampings, T, N]``; zero for classes not present.

    The Hessian ``diag(m) - P' P`` is singular along ``g + constant``, which changes no assignment:
    adding a matrix of equal numbers leaves the step without such a part. Damping enlarges diag(m).
    """
    p = (scores + g.unsqueeze(1)).softmax(2)
    weighted = p * sizes.real.unsqueeze(2)
    sums = weighted.sum(1)
    present = sizes.present.to(p.dtype)
    count = sizes.real.sum(1)[:, None, None]
    # Rows that all belong to one class for certain have no curvature.
    floor = torch.finfo(p.dtype).eps * count + ~sizes.present
    system = torch.diag_embed(sums + floor.squeeze(1)) - p.transpose(1, 2) @ weighted
    system = system + count * present * present.transpose(1, 2) / present.sum(2, keepdim=True) ** 2
    systems = torch.stack([system + damping * torch.diag_embed(sums) for damping in dampings])
    right = (sizes.sizes - sums).expand(len(dampings), *g.shape).unsqueeze(3)
    return solve(systems.flatten(0, 1), right.flatten(0, 1)).reshape(-1, *g.shape)
