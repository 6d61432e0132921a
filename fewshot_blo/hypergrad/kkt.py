"""Inner problems with constraints: their optimality conditions, and derivatives of a solution.

The problem is ``min G(x)`` subject to ``e(x) = 0`` and ``c(x) ≤ 0``, of one task and few variables,
for all matrices are dense.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from fewshot_blo.bilevel import Params
from fewshot_blo.errors import DivergenceError

Function = Callable[[Tensor], Tensor]
"""From variables ``[n]`` to a scalar, or to a vector."""


@dataclass(frozen=True)
class Constrained:
    """An inner problem with constraints.

    Attributes:
        objective: G, ``[n]`` to a scalar.
        equalities: e, ``[n]`` to ``[m]``.
        inequalities: c, ``[n]`` to ``[k]``.
        softness: δ. ``(|e|² + |max(c, 0)|²) / (2δ)`` is added to G in place of the constraints, so
            that there is a solution where no x is feasible; 0 for constraints that hold.
    """

    objective: Function
    equalities: Function
    inequalities: Function
    softness: float = 0.0

    def conditions(self, x: Tensor, y: Tensor, z: Tensor, t: float) -> Tensor:
        """Karush-Kuhn-Tucker conditions at ``(x, y, z)``, zero at a solution, with a graph.

        ``∇G + y'∇e + z'∇c``, ``e - δ y``, and ``z (c - δ z) + t``.
        """
        x = x if x.requires_grad else x.detach().requires_grad_()
        with torch.enable_grad():
            e, c = self.equalities(x), self.inequalities(x)
            lagrangian = self.objective(x) + y @ e + z @ c
            (slope,) = torch.autograd.grad(lagrangian, x, create_graph=True)
        return torch.cat([slope, e - self.softness * y, z * (c - self.softness * z) + t])


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
        curvature: smallest eigenvalue of the Hessian of the Lagrangian with barrier, relative to
            the largest absolute one; negative where x is not a minimiser.
    """

    x: Tensor
    y: Tensor
    z: Tensor
    t: float
    residual: float
    steps: int
    curvature: float = 0.0


def adjoint(
    problem: Constrained, point: KKTPoint, slope: Tensor, outer: Params
) -> dict[str, Tensor | None]:
    """``slope' d(x, y, z)/du`` for every outer variable u, by implicit differentiation.

    Args:
        problem: closes over the outer variables.
        point: its solution.
        slope: derivatives over x, ``[n]``, or over x, y and z, ``[n + m + k]``.
        outer: the outer variables.
    """
    sizes = [len(point.x), len(point.y), len(point.z)]
    w = torch.cat([point.x, point.y, point.z]).detach()

    def conditions(w: Tensor) -> Tensor:
        x, y, z = torch.split(w, sizes)
        return problem.conditions(x, y, z, point.t)

    matrix = jacobian(conditions, w)
    right = torch.cat([slope, slope.new_zeros(sum(sizes) - len(slope))])
    p = solved(matrix.T, right)
    with torch.enable_grad():
        total = -(p @ problem.conditions(point.x, point.y, point.z, point.t))
    gradients = torch.autograd.grad(total, list(outer.values()), allow_unused=True)
    return dict(zip(outer, gradients, strict=True))


def solved(matrix: Tensor, right: Tensor) -> Tensor:
    """The solution of a linear system, that of least norm where the matrix is singular.

    Raises:
        DivergenceError: if an entry is not finite.
    """
    if not (bool(matrix.isfinite().all()) and bool(right.isfinite().all())):
        raise DivergenceError(
            "the inner problem with constraints has derivatives that are not finite"
        )
    solution, info = torch.linalg.solve_ex(matrix, right)
    if int(info) or not bool(solution.isfinite().all()):
        solution = torch.linalg.lstsq(matrix, right[:, None], driver="gelsd").solution[:, 0]
    found: Tensor = solution
    return found
