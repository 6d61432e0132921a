"""The constrained inner problem of a bilevel one as a problem of one vector, solved."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, Params, TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad.kkt import Constrained, KKTPoint, adjoint, solve_constrained

FIRST_SMOOTHING, LAST_SMOOTHING = 1e-1, 1e-8
"""Complementarity at the start of a run, and at its end."""

_OPTIMISTIC = 0.1

MOST_VARIABLES = 1000
"""Inner variables up to which dense matrices are reasonable."""


@dataclass(frozen=True)
class SolvedInner:
    """A solution of the inner problem.

    Attributes:
        params: v, ``[1, ...]``.
        point: the same as a vector, with its multipliers.
        problem: of the vector.
    """

    params: TaskParams
    point: KKTPoint
    problem: Constrained

    def derivative(self, slope: TaskParams, outer: Params) -> dict[str, Tensor | None]:
        """``slope' dv/du`` for every outer variable."""
        flat = torch.cat([g.reshape(-1) for g in slope.values()]).detach()
        return adjoint(self.problem, self.point, flat, outer)


def solved_inner(problem: Bilevel, start: TaskParams, smoothing: float) -> SolvedInner:
    """Solves the inner problem with its constraints.

    Its solution is smooth in the outer variables for a positive ``smoothing`` t, at which
    complementarity is left, and inequalities may be violated by t, so that the feasible set has an
    interior. Where it is not unique it is the one that suits the outer loss: ``G + 0.1 sqrt(t) F``
    is minimised.

    Args:
        problem: of one task.
        start: v to start from, ``[1, ...]``.
        smoothing: t.

    Raises:
        ConfigurationError: if there are several tasks, or too many variables for dense matrices.
        DivergenceError: if it has no solution.
    """
    constraints = problem.constraints
    assert constraints is not None
    shapes = {name: p.shape for name, p in start.items()}
    sizes = [p.numel() for p in start.values()]
    if problem.tasks != 1 or sum(sizes) > MOST_VARIABLES:
        raise ConfigurationError(
            f"an inner problem with constraints has {problem.tasks} tasks of {sum(sizes)} "
            f"variables: Implicit solves one of at most {MOST_VARIABLES}; use Unroll with sets"
        )

    def named(x: Tensor) -> TaskParams:
        parts = torch.split(x, sizes)
        return {n: p.reshape(s) for (n, s), p in zip(shapes.items(), parts, strict=True)}

    share = _OPTIMISTIC * smoothing**0.5
    flat = Constrained(
        lambda x: (problem.inner_loss(named(x)) + share * problem.outer_loss(named(x)))[0],
        lambda x: constraints.equalities(named(x))[0],
        lambda x: constraints.inequalities(named(x))[0] - smoothing,
    )
    point = solve_constrained(
        flat, torch.cat([p.detach().reshape(-1) for p in start.values()]), smoothing
    )
    params = {name: p.detach() for name, p in named(point.x).items()}
    return SolvedInner(params, point, flat)
