"""The constrained inner problem of a bilevel one as a problem of one vector, solved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, Params, TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad.gradients import inner_gradients
from fewshot_blo.hypergrad.interior_point import solve_constrained
from fewshot_blo.hypergrad.kkt import Constrained, KKTPoint, adjoint

FIRST_SMOOTHING, LAST_SMOOTHING = 1e-1, 1e-10
"""Complementarity at the start of a run, and at its end."""

_OPTIMISTIC = 0.1

_LEAST_SOFTNESS = 1e-6
"""Violation of a constraint over its multiplier, of G divided by its scale, in the end."""

_LARGE = 10.0
"""Multipliers, of G divided by its scale, from which on constraints count as violated."""

MOST_VARIABLES = 1000
"""Inner variables up to which dense matrices are reasonable."""


@dataclass(frozen=True)
class Scales:
    """The size of the derivatives of both losses over v, by which they are divided."""

    inner: float = 1.0
    outer: float = 1.0


@dataclass(frozen=True)
class SolvedInner:
    """A solution of the inner problem.

    Attributes:
        params: v, ``[1, ...]``.
        point: the same as a vector, with its multipliers.
        problem: of the vector.
        scales: of the losses.
    """

    params: TaskParams
    point: KKTPoint
    problem: Constrained
    scales: Scales

    @property
    def excess(self) -> float:
        """What F is raised by where constraints can hardly be met: σ δ/2 times squared excesses.

        A multiplier is the violation over δ; those beyond a number that no constraint needs which
        can be met say that v is not feasible. The term leads u to where v can be.
        """
        over = torch.cat([self.point.y.abs(), self.point.z]) - _LARGE
        return 0.5 * self._weight * float(over.clamp(min=0).square().sum())

    @property
    def _weight(self) -> float:
        return self.scales.outer * self.problem.softness

    def derivative(
        self, slope: TaskParams, outer: Params, *, excess: bool = False
    ) -> dict[str, Tensor | None]:
        """``slope' dv/du`` for every outer variable, with that of ``excess`` if asked for."""
        flat = torch.cat([g.reshape(-1) for g in slope.values()]).detach()
        if excess:
            y, z = self.point.y, self.point.z
            over_y = y.sign() * (y.abs() - _LARGE).clamp(min=0)
            over_z = (z - _LARGE).clamp(min=0)
            flat = torch.cat([flat, self._weight * over_y, self._weight * over_z])
        return adjoint(self.problem, self.point, flat, outer)


def scales_of(problem: Bilevel, at: TaskParams) -> Scales:
    """The largest first or second derivatives over v at a point."""
    return Scales(_size(problem.inner_loss, at), _size(problem.outer_loss, at))


def _size(loss: object, at: TaskParams) -> float:
    leaves = {name: p.detach().requires_grad_() for name, p in at.items()}
    with torch.enable_grad():
        value = loss(leaves).sum()  # type: ignore[operator]
        if not value.requires_grad:
            return 1.0
        slopes = inner_gradients(value, leaves, create_graph=True)
        flat = torch.cat([g.reshape(-1) for g in slopes.values()])
        parts = [flat.detach()]
        if flat.requires_grad:
            # One product with ones in place of the matrix: only the order of magnitude counts.
            rows = inner_gradients(flat.sum(), leaves)
            parts += [row.reshape(-1) for row in rows.values()]
    size = float(torch.cat(parts).abs().max())
    return size if 0 < size < float("inf") else 1.0


def solved_inner(
    problem: Bilevel,
    start: TaskParams,
    smoothing: float,
    *,
    scales: Scales,
    multipliers: Mapping[str, Tensor] | None = None,
    optimistic: bool = True,
    softness: float | None = None,
) -> SolvedInner:
    """Solves the inner problem with its constraints.

    Its solution is smooth in the outer variables for a positive ``smoothing`` t, at which
    complementarity is left, and constraints may be violated by ``max(t, 1e-6)`` times their
    multipliers, so that there is a solution for all outer variables. Where it is not unique it is
    the one that suits the outer loss: ``G + 0.1 t^(1/2) F`` is minimised, both divided by their
    scales.

    Args:
        problem: of one task.
        start: v to start from, ``[1, ...]``.
        smoothing: t.
        scales: of the losses.
        multipliers: ``y`` and ``z``, ``[1, ...]``, of the solution for outer variables nearby
            where start is from; empty or None for none.
        optimistic: whether F decides between solutions.
        softness: of constraints, in place of ``max(t, 1e-6)``.

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

    share = _OPTIMISTIC * smoothing**0.5 / scales.outer if optimistic else 0.0

    def objective(x: Tensor) -> Tensor:
        loss = problem.inner_loss(named(x)) / scales.inner
        return (loss + share * problem.outer_loss(named(x)) if share else loss)[0]

    flat = Constrained(
        objective,
        lambda x: constraints.equalities(named(x))[0],
        lambda x: constraints.inequalities(named(x))[0],
        softness=max(smoothing, _LEAST_SOFTNESS) if softness is None else softness,
    )
    known = (multipliers["y"][0], multipliers["z"][0]) if multipliers else None
    x = torch.cat([p.detach().reshape(-1) for p in start.values()])
    point = solve_constrained(flat, x, smoothing, known)
    params = {name: p.detach() for name, p in named(point.x).items()}
    return SolvedInner(params, point, flat, scales)
