"""A primal-dual interior-point method for constrained problems of few variables."""

from __future__ import annotations

import contextlib
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

_FEW_ROWS = 8
"""Rows of a Jacobian up to which one after the other is quicker."""

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
            "point for these outer variables, is the inner loss convex, and has no active "
            "constraint a gradient of zero?"
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
        """The Newton step, for x, z and y at once: reduced to x small curvatures would be lost.

        ``C dx - (s + δ z)/z dz = r_s/z - r_c`` follows from ``z ds = -r_s - s dz``.
        """
        _, s, y, z = at
        slope, r_e, r_c, r_s = r
        n, k, m = len(slope), len(z), len(y)
        h = self.h + self._shift(s, z) * torch.eye(n, dtype=slope.dtype)
        below = (s + self.softness * z) / z
        corner = torch.full_like(y, -max(self.softness, 1e-12))
        whole = slope.new_zeros(n + k + m, n + k + m)
        whole[:n, :n] = h
        whole[n : n + k, :n], whole[:n, n : n + k] = self.c_x, self.c_x.T
        whole[n + k :, :n], whole[:n, n + k :] = self.e_x, self.e_x.T
        whole[n:, n:] = torch.diag(torch.cat([-below, corner]))
        right = torch.cat([-slope, r_s / z - r_c, -r_e])
        dx, dz, dy = torch.split(solved(whole, right), [n, k, m])
        # The one of two forms that does not cancel.
        small = (-r_s - s * dz) / z
        ds = torch.where(z > s, small, -r_c - self.c_x @ dx + self.softness * dz)
        return dx, ds, dy, dz

    def _shift(self, s: Tensor, z: Tensor) -> float:
        """What makes the matrix of x positive definite with the barrier, if it is not."""
        values = _eigenvalues(self.h)
        largest = float(values.abs().max())
        if float(values.min()) >= -1e-12 * largest:
            return 0.0
        values = _eigenvalues(self.h + self._barrier(s, z))
        floor = 1e-10 * largest
        return max(0.0, 2 * floor - float(values.min())) if float(values.min()) < floor else 0.0

    def _barrier(self, s: Tensor, z: Tensor) -> Tensor:
        weight = z / (s + self.softness * z)
        equal = 1e6 * self.h.abs().max() * self.e_x.T @ self.e_x
        found: Tensor = self.c_x.T @ (weight[:, None] * self.c_x) + equal
        return found

    def curvature(self, s: Tensor, z: Tensor) -> float:
        """Smallest eigenvalue with the barrier's and the equalities', over the largest of H."""
        largest = float(self.h.abs().max())
        if not largest > 0:
            return 0.0
        return float(_eigenvalues(self.h + self._barrier(s, z)).min()) / largest


def _eigenvalues(matrix: Tensor) -> Tensor:
    """Of a symmetric matrix; ones where an entry is not finite."""
    finite = bool(matrix.isfinite().all())
    found: Tensor = torch.linalg.eigvalsh(matrix) if finite else torch.ones_like(matrix[0])
    return found


def _jacobian(values: Tensor, x: Tensor) -> Tensor:
    """``[m, n]``, all rows at once where there are many, and PyTorch can do so."""
    if not values.requires_grad:
        return x.new_zeros(len(values), len(x))
    with torch.enable_grad():
        if len(values) > _FEW_ROWS:
            with contextlib.suppress(RuntimeError):  # An operation without a batching rule.
                found: Tensor = torch.autograd.grad(
                    values,
                    x,
                    torch.eye(len(values), dtype=values.dtype, device=x.device),
                    retain_graph=True,
                    materialize_grads=True,
                    is_grads_batched=True,
                )[0]
                return found.detach()
        rows = [
            torch.autograd.grad(value, x, retain_graph=True, materialize_grads=True)
            for value in values.unbind()
        ]
    # Zeros in place of absent gradients require grad in older versions of PyTorch.
    return torch.stack([row.detach() for (row,) in rows]) if rows else x.new_zeros(0, len(x))


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
