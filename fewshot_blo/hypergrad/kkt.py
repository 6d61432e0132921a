"""Inner problems with constraints: their minimiser, its multipliers, and derivatives of both.

The problem is ``min G(x)`` subject to ``e(x) = 0`` and ``c(x) ≤ 0``, of one task and few variables,
for all matrices are dense.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian

from fewshot_blo.bilevel import Params
from fewshot_blo.errors import DivergenceError

Function = Callable[[Tensor], Tensor]
"""From variables ``[n]`` to a scalar, or to a vector."""

_STEPS, _STALLS = 100, 8
"""Most Newton steps, and most of them in a row that bring nothing."""

_BOUNDARY = 0.995
"""Share of the way to the boundary that a step may take."""


@dataclass(frozen=True)
class Constrained:
    """An inner problem with constraints.

    Attributes:
        objective: G, ``[n]`` to a scalar.
        equalities: e, ``[n]`` to ``[m]``.
        inequalities: c, ``[n]`` to ``[k]``.
    """

    objective: Function
    equalities: Function
    inequalities: Function

    def conditions(self, x: Tensor, y: Tensor, z: Tensor, t: float) -> Tensor:
        """Karush-Kuhn-Tucker conditions at ``(x, y, z)``, zero at a solution, with a graph.

        ``∇G + y'∇e + z'∇c``, ``e``, and ``z c + t``.
        """
        x = x if x.requires_grad else x.detach().requires_grad_()
        with torch.enable_grad():
            e, c = self.equalities(x), self.inequalities(x)
            lagrangian = self.objective(x) + y @ e + z @ c
            (slope,) = torch.autograd.grad(lagrangian, x, create_graph=True)
        return torch.cat([slope, e, z * c + t])


@dataclass(frozen=True)
class KKTPoint:
    """A solution with its multipliers.

    Attributes:
        x: ``[n]``.
        y: multipliers of the equalities, ``[m]``.
        z: multipliers of the inequalities, ``[k]``, not negative.
        t: complementarity ``-z c`` at which it was stopped.
        residual: largest absolute entry of the conditions.
        steps: Newton steps taken.
    """

    x: Tensor
    y: Tensor
    z: Tensor
    t: float
    residual: float
    steps: int


def solve_constrained(problem: Constrained, start: Tensor, least: float) -> KKTPoint:
    """Solves by a primal-dual interior-point method with slack variables.

    Newton steps on ``∇L = 0``, ``e = 0``, ``c + s = 0``, ``s z = t`` for a falling t; the matrix of
    the steps is shifted where it is not positive definite.

    Args:
        problem: the problem.
        start: x to start from, which need not be feasible.
        least: t at the end.

    Raises:
        DivergenceError: if the steps do not converge, as where no point is feasible.

    Source: Nocedal & Wright, "Numerical Optimization", chapter 19.
    """
    x = start.detach().clone()
    c = problem.inequalities(x).detach()
    e = problem.equalities(x).detach()
    s = (-c).clamp(min=1e-2 * (1 + c.abs()))
    z, y = torch.ones_like(s), torch.zeros_like(e)
    t = max(1.0, least) if len(s) else 0.0
    number = stalls = 0
    while number < _STEPS and stalls < _STALLS:
        parts = _Linear.at(problem, x, y, z)
        r = parts.residuals(s, z, t)
        error = max(float(part.abs().max()) if len(part) else 0.0 for part in r)
        if error <= max(1e-3 * least, 1e-10) and t <= least:
            break
        if t > least and error <= 10 * t:
            t = max(least, min(0.2 * t, t**1.5))
            r = parts.residuals(s, z, t)
        dx, ds, dy, dz = parts.step(s, z, r)
        longest = min(_to_boundary(s, ds), _to_boundary(z, dz))
        length, helps = _length(problem, (x, s, y, z), (dx, ds, dy, dz), r, t, longest)
        stalls = 0 if helps else stalls + 1
        x, s, y, z = (a + length * d for a, d in zip((x, s, y, z), (dx, ds, dy, dz), strict=True))
        number += 1
        if not bool(x.isfinite().all()):
            break
    residual = float(problem.conditions(x, y, z, t).detach().abs().max())
    violation = float(problem.inequalities(x).detach().clamp(min=0).max()) if len(s) else 0.0
    residual = max(residual, violation)
    if not residual <= 1e-4:
        raise DivergenceError(
            f"the inner problem with constraints was not solved: after {number} Newton steps its "
            f"optimality conditions are violated by {residual:.2g}; is there a feasible point for "
            "these outer variables, and is the inner loss convex?"
        )
    return KKTPoint(x, y, z, t, residual, number)


def adjoint(
    problem: Constrained, point: KKTPoint, slope: Tensor, outer: Params
) -> dict[str, Tensor | None]:
    """``slope' dx/du`` for every outer variable u, by implicit differentiation of the conditions.

    Args:
        problem: closes over the outer variables.
        point: its solution.
        slope: F_v, ``[n]``.
        outer: the outer variables.
    """
    sizes = [len(point.x), len(point.y), len(point.z)]
    w = torch.cat([point.x, point.y, point.z]).detach()

    def conditions(w: Tensor) -> Tensor:
        x, y, z = torch.split(w, sizes)
        return problem.conditions(x, y, z, point.t)

    matrix = jacobian(conditions, w)
    right = torch.cat([slope, slope.new_zeros(sizes[1] + sizes[2])])
    p = _solved(matrix.T, right)
    with torch.enable_grad():
        total = -(p @ problem.conditions(point.x, point.y, point.z, point.t))
    gradients = torch.autograd.grad(total, list(outer.values()), allow_unused=True)
    return dict(zip(outer, gradients, strict=True))


@dataclass(frozen=True)
class _Linear:
    """The problem to second order at a point."""

    slope: Tensor
    h: Tensor
    e: Tensor
    e_x: Tensor
    c: Tensor
    c_x: Tensor

    @staticmethod
    def at(problem: Constrained, x: Tensor, y: Tensor, z: Tensor) -> _Linear:
        def lagrangian(x: Tensor) -> Tensor:
            return problem.objective(x) + y @ problem.equalities(x) + z @ problem.inequalities(x)

        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(lagrangian(leaf), leaf)
        return _Linear(
            slope,
            hessian(lagrangian, x),
            problem.equalities(x).detach(),
            _jacobian(problem.equalities, x, len(y)),
            problem.inequalities(x).detach(),
            _jacobian(problem.inequalities, x, len(z)),
        )

    def residuals(self, s: Tensor, z: Tensor, t: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.slope, self.e, self.c + s, s * z - t

    def step(
        self, s: Tensor, z: Tensor, r: tuple[Tensor, Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The Newton step, reduced to x and y: ``ds = -r_c - C dx``, ``dz = (-r_s - z ds) / s``."""
        slope, e, r_c, r_s = r
        weight = z / s
        matrix = self.h + self.c_x.T @ (weight[:, None] * self.c_x)
        right = -slope - self.c_x.T @ ((z * r_c - r_s) / s)
        matrix = matrix + _shift(matrix) * torch.eye(len(right), dtype=right.dtype)
        if len(e):
            zero = -1e-10 * torch.eye(len(e), dtype=right.dtype)
            whole = torch.cat([torch.cat([matrix, self.e_x.T], 1), torch.cat([self.e_x, zero], 1)])
            solution = _solved(whole, torch.cat([right, -e]))
            dx, dy = solution[: len(right)], solution[len(right) :]
        else:
            dx, dy = _solved(matrix, right), e
        ds = -r_c - self.c_x @ dx
        return dx, ds, dy, (-r_s - z * ds) / s


def _jacobian(function: Function, x: Tensor, rows: int) -> Tensor:
    """``[rows, n]``; of nothing where there are no rows, which autograd refuses."""
    return jacobian(function, x) if rows else x.new_zeros(0, len(x))


def _shift(matrix: Tensor) -> float:
    """What makes a symmetric matrix positive definite, if it is not."""
    values = torch.linalg.eigvalsh(matrix)
    floor = 1e-12 * max(1.0, float(values.abs().max()))
    return max(0.0, 2 * floor - float(values.min())) if float(values.min()) < floor else 0.0


def _solved(matrix: Tensor, right: Tensor) -> Tensor:
    """The solution, that of least norm where the matrix is singular."""
    if not (bool(matrix.isfinite().all()) and bool(right.isfinite().all())):
        raise DivergenceError(
            "the inner problem with constraints has derivatives that are not finite"
        )
    solution, info = torch.linalg.solve_ex(matrix, right)
    if int(info) or not bool(solution.isfinite().all()):
        solution = torch.linalg.lstsq(matrix, right[:, None], driver="gelsd").solution[:, 0]
    found: Tensor = solution
    return found


def _to_boundary(a: Tensor, da: Tensor) -> float:
    ratios = (-_BOUNDARY * a / da)[da < 0]
    return min(1.0, float(ratios.min())) if len(ratios) else 1.0


def _length(
    problem: Constrained,
    at: tuple[Tensor, ...],
    step: tuple[Tensor, ...],
    r: tuple[Tensor, ...],
    t: float,
    longest: float,
) -> tuple[float, bool]:
    """A length at which the residuals fall, and whether there is one; else the longest."""

    def size(parts: tuple[Tensor, ...]) -> float:
        return math.sqrt(sum(float(part.square().sum()) for part in parts))

    before, length = size(r), longest
    for _ in range(12):
        x, s, y, z = (a + length * d for a, d in zip(at, step, strict=True))
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            e, c = problem.equalities(leaf), problem.inequalities(leaf)
            (slope,) = torch.autograd.grad(problem.objective(leaf) + y @ e + z @ c, leaf)
        now = size((slope, e.detach(), c.detach() + s, s * z - t))
        if now <= (1 - 1e-4 * length) * before or now <= 1e-9:
            return length, True
        length /= 2
    return longest, False
