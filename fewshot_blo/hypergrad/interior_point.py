"""A primal-dual interior-point method for constrained problems of few variables."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_blo.errors import DivergenceError
from fewshot_blo.hypergrad.kkt import Constrained, KKTPoint, solved

_STEPS, _STALLS = 100, 8
"""Most Newton steps, and most of them in a row that bring nothing."""

_WARM_STEPS, _WARM_STALLS = 20, 3
"""The same from the solution of a problem nearby."""

_BOUNDARY = 0.995
"""Share of the way to the boundary that a step may take."""

_RESIDUAL = 1e-5
"""Largest violation of the conditions with which steps that stall have solved a problem."""

Parts = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of x, of the slack variables s, of y and of z."""


def solve_constrained(
    problem: Constrained,
    start: Tensor,
    least: float,
    multipliers: tuple[Tensor, Tensor] | None = None,
) -> KKTPoint:
    """Solves by a primal-dual interior-point method with slack variables.

    Newton steps on ``∇L = 0``, ``e = δ y``, ``c + s = δ z``, ``s z = t`` for a falling t; the
    matrix of the steps is shifted where it is not positive definite.

    Args:
        problem: the problem.
        start: x to start from, which need not be feasible.
        least: t at the end.
        multipliers: y and z of a problem nearby that was solved at start, to begin at the end's t.

    Raises:
        DivergenceError: if the steps do not converge, as where no point is feasible.

    Source: Nocedal & Wright, "Numerical Optimization", chapter 19.
    """
    x = start.detach().clone()
    c, e = problem.inequalities(x).detach(), problem.equalities(x).detach()
    if multipliers is not None and len(c):
        y, z = multipliers
        s = torch.maximum(problem.softness * z - c, 0.1 * least / z)
        found = _newton(problem, (x, s, y, z), least, least, _WARM_STEPS, _WARM_STALLS)
        if found.residual <= max(least, 1e-9):
            return found
    s = (-c).clamp(min=1e-2 * (1 + c.abs()))
    cold = (x, s, torch.zeros_like(e), torch.ones_like(s))
    t = max(1.0, least) if len(s) else 0.0
    found = _newton(problem, cold, t, least, _STEPS, _STALLS)
    if not found.residual <= _RESIDUAL:
        raise DivergenceError(
            f"the inner problem with constraints was not solved: after {found.steps} Newton steps "
            f"its optimality conditions are violated by {found.residual:.2g}; is there a feasible "
            "point for these outer variables, and is the inner loss convex?"
        )
    return found


def _newton(
    problem: Constrained, at: Parts, t: float, least: float, most: int, stalls_allowed: int
) -> KKTPoint:
    """Newton steps while they help, and one after they have converged.

    The last one makes the solution as smooth a function of the outer variables as rounding allows,
    where solutions are nearly not unique, too.
    """
    number = stalls = 0
    polished = False
    while True:
        parts = _Linear.at(problem, at)
        r = parts.residuals(at, t)
        error = _error(r, at, t)
        enough = min(max(1e-3 * least, 1e-10), 1e-9)  # As exact as line searches need it.
        close = error <= enough and t <= least
        over = not math.isfinite(error) or number >= most or stalls >= stalls_allowed
        if over or (close and polished):
            break
        polished = close
        if t > least and error <= 10 * t:
            t = max(least, min(0.2 * t, t**1.5))
            r = parts.residuals(at, t)
        step = parts.step(at, r)
        longest = min(_to_boundary(at[1], step[1]), _to_boundary(at[3], step[3]))
        length, helps = _length(problem, at, step, r, t, longest)
        stalls = 0 if helps else stalls + 1
        x, s, y, z = (a + length * d for a, d in zip(at, step, strict=True))
        at = (x, s, y, z)
        number += 1
    x, s, y, z = at
    error = max(error, t - least) if math.isfinite(error) else math.inf
    return KKTPoint(x, y, z, t, error, number, parts.curvature(s, z))


def _error(r: Parts, at: Parts, t: float) -> float:
    """The largest residual, that of the slope relative to large multipliers.

    Where s and z are both of the size of the root of t, their errors are that of their product
    over this root: it has to be smaller than t itself by far.
    """
    slope, *others = r
    others = [*others, others[-1] * min(1.0, 1e-4 / t)] if t else others
    size = max((float(a.abs().max()) for a in at[2:] if len(a)), default=0.0)
    largest = max((float(part.abs().max()) for part in others if len(part)), default=0.0)
    return max(float(slope.abs().max()) / max(1.0, 1e-3 * size), largest)


@dataclass(frozen=True)
class _Linear:
    """The problem to second order at a point."""

    slope: Tensor
    h: Tensor
    e: Tensor
    e_x: Tensor
    c: Tensor
    c_x: Tensor
    softness: float

    @staticmethod
    def at(problem: Constrained, at: Parts) -> _Linear:
        x, _, y, z = at
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            e, c = problem.equalities(x), problem.inequalities(x)
            lagrangian = problem.objective(x) + y @ e + z @ c
            (slope,) = torch.autograd.grad(lagrangian, x, create_graph=True)
        return _Linear(
            slope.detach(),
            _jacobian(slope, x),
            e.detach(),
            _jacobian(e, x),
            c.detach(),
            _jacobian(c, x),
            problem.softness,
        )

    def residuals(self, at: Parts, t: float) -> Parts:
        _, s, y, z = at
        return self.slope, self.e - self.softness * y, self.c + s - self.softness * z, s * z - t

    def step(self, at: Parts, r: Parts) -> Parts:
        """The Newton step, reduced to x and y.

        ``ds = -r_c - C dx + δ dz`` and ``s dz + z ds = -r_s``, so that
        ``dz = (z (r_c + C dx) - r_s) / (s + δ z)``.
        """
        _, s, y, z = at
        slope, r_e, r_c, r_s = r
        below = s + self.softness * z
        matrix = self.h + self.c_x.T @ ((z / below)[:, None] * self.c_x)
        right = -slope - self.c_x.T @ ((z * r_c - r_s) / below)
        matrix = matrix + _shift(matrix) * torch.eye(len(right), dtype=right.dtype)
        if len(y):
            corner = -max(self.softness, 1e-10) * torch.eye(len(y), dtype=right.dtype)
            whole = torch.cat(
                [torch.cat([matrix, self.e_x.T], 1), torch.cat([self.e_x, corner], 1)]
            )
            solution = solved(whole, torch.cat([right, -r_e]))
            dx, dy = solution[: len(right)], solution[len(right) :]
        else:
            dx, dy = solved(matrix, right), y
        dz = (z * (r_c + self.c_x @ dx) - r_s) / below
        return dx, -r_c - self.c_x @ dx + self.softness * dz, dy, dz

    def curvature(self, s: Tensor, z: Tensor) -> float:
        """Smallest eigenvalue with the barrier's and the equalities', over the largest of H."""
        weight = z / (s + self.softness * z)
        matrix = self.h + self.c_x.T @ (weight[:, None] * self.c_x)
        if not bool(matrix.isfinite().all()):
            return 0.0
        matrix = matrix + 1e6 * self.h.abs().max() * self.e_x.T @ self.e_x
        largest = float(self.h.abs().max())
        return float(torch.linalg.eigvalsh(matrix).min()) / largest if largest > 0 else 0.0


def _jacobian(values: Tensor, x: Tensor) -> Tensor:
    """``[m, n]``."""
    if not values.requires_grad:
        return x.new_zeros(len(values), len(x))
    with torch.enable_grad():
        rows = [
            torch.autograd.grad(value, x, retain_graph=True, materialize_grads=True)
            for value in values.unbind()
        ]
    return torch.stack([row for (row,) in rows]) if rows else x.new_zeros(0, len(x))


def _shift(matrix: Tensor) -> float:
    """What makes a symmetric matrix positive definite, if it is not."""
    if not bool(matrix.isfinite().all()):
        return 0.0
    values = torch.linalg.eigvalsh(matrix)
    floor = 1e-12 * max(1.0, float(values.abs().max()))
    return max(0.0, 2 * floor - float(values.min())) if float(values.min()) < floor else 0.0


def _to_boundary(a: Tensor, da: Tensor) -> float:
    ratios = (-_BOUNDARY * a / da)[da < 0]
    return min(1.0, float(ratios.min())) if len(ratios) else 1.0


def _length(
    problem: Constrained, at: Parts, step: Parts, r: Parts, t: float, longest: float
) -> tuple[float, bool]:
    """A length at which the residuals fall, and whether there is one; else the longest."""

    def size(parts: Parts) -> float:
        return math.sqrt(sum(float(part.square().sum()) for part in parts))

    before, length, soft = size(r), longest, problem.softness
    for _ in range(12):
        x, s, y, z = (a + length * d for a, d in zip(at, step, strict=True))
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            e, c = problem.equalities(leaf), problem.inequalities(leaf)
            (slope,) = torch.autograd.grad(problem.objective(leaf) + y @ e + z @ c, leaf)
        now = size((slope, e.detach() - soft * y, c.detach() + s - soft * z, s * z - t))
        if now <= (1 - 1e-4 * length) * before or now <= 1e-9:
            return length, True
        length /= 2
    return longest, False
