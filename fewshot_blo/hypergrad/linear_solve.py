"""Linear solvers for T independent symmetric systems ``H_t q_t = b_t``, by products with H.

Each is a frozen dataclass called as ``solve(matvec, b)``; right-hand sides and solutions are
task-stacked parameters ``[T, ...]``. ``damping`` solves ``(H + damping I) q = b`` instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fewshot_blo.bilevel import TaskParams, task_dot
from fewshot_blo.hypergrad.dense import FEW, Dense
from fewshot_blo.hypergrad.minres import MINRES
from fewshot_blo.hypergrad.nystrom import Nystrom
from fewshot_blo.hypergrad.systems import (
    LinearSolver,
    MatVec,
    add_scaled,
    damped,
)
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, NonNegative

__all__ = [
    "MINRES",
    "SOLVERS",
    "ConjugateGradient",
    "Dense",
    "LinearSolver",
    "MatVec",
    "Neumann",
    "Nystrom",
    "OneStep",
    "chosen_solver",
]


@checked
@dataclass(frozen=True)
class ConjugateGradient:
    """Conjugate gradients; H + damping I must be positive definite.

    A task stops moving once its residual is below ``tolerance`` times its right-hand side, or
    where the curvature along its search direction is not positive. Exact after as many steps as
    H has distinct eigenvalues.

    Attributes:
        steps: largest number of steps, each a product with H.
        damping: added to the diagonal of H.
        tolerance: residual at which a task stops, relative to its right-hand side.

    Source: Hestenes & Stiefel (1952); for hypergradients Pedregosa, "HOAG" (arXiv 1602.02355)
    and Rajeswaran et al., "iMAML" (arXiv 1909.04630).
    """

    steps: Counting = 5
    damping: NonNegative = 0.0
    tolerance: NonNegative = 1e-10

    def __call__(self, matvec: MatVec, b: TaskParams) -> TaskParams:
        """Solves from a zero start."""
        q = {name: torch.zeros_like(v) for name, v in b.items()}
        residual, direction = b, b
        squared = task_dot(b, b)
        target = squared * self.tolerance**2
        for _ in range(self.steps):
            # On a GPU this test would be a host sync; further steps leave a solved task as it is.
            if squared.device.type == "cpu" and (squared <= target).all():
                break
            product = damped(matvec, direction, self.damping)
            curvature = task_dot(direction, product)
            # Negated comparisons are true for NaN, which then reaches q and is noticed.
            moving = ~(squared <= target) & ~(curvature <= 0)
            length = torch.where(moving, squared / torch.where(moving, curvature, 1), 0)
            q = add_scaled(q, length, direction)
            residual = add_scaled(residual, -length, product)
            new_squared = torch.where(moving, task_dot(residual, residual), 0)
            ratio = new_squared / torch.where(moving, squared, 1)
            direction = add_scaled(residual, ratio, direction)
            squared = new_squared
        return q


@checked
@dataclass(frozen=True)
class Neumann:
    """The series ``α Σ_{j≤steps} (I - αH)^j b``, which is ``steps`` fixed-point iterations.

    Converges where ``α`` is below 2 over the largest eigenvalue of H; truncating it damps the
    directions of low curvature (Vicol et al., arXiv 2212.14032).

    Attributes:
        steps: number of steps, each a product with H.
        step_size: step size α of the series.
        damping: added to the diagonal of H.

    Source: Lorraine et al. (arXiv 1911.02590), algorithm 3.
    """

    steps: Counting = 20
    step_size: NonNegative = 0.1
    damping: NonNegative = 0.0

    def __call__(self, matvec: MatVec, b: TaskParams) -> TaskParams:
        """Sums the series."""
        term = total = b
        for _ in range(self.steps):
            product = damped(matvec, term, self.damping)
            term = {name: v - self.step_size * product[name] for name, v in term.items()}
            total = {name: v + term[name] for name, v in total.items()}
        return {name: self.step_size * v for name, v in total.items()}


@checked
@dataclass(frozen=True)
class OneStep:
    """``q = α b``: the Hessian is taken for a multiple of the identity; no product with it.

    Attributes:
        step_size: factor α of the right-hand side.

    Source: Luketina et al., "T1-T2" (arXiv 1511.06727).
    """

    step_size: NonNegative = 0.1

    def __call__(self, matvec: MatVec, b: TaskParams) -> TaskParams:
        """Scales the right-hand side."""
        del matvec
        return {name: self.step_size * v for name, v in b.items()}


def chosen_solver(b: TaskParams, products: int, *, tolerance: float = 1e-8) -> LinearSolver:
    """Dense for at most 100 parameters of a task, else MINRES to a relative residual.

    Args:
        b: a right-hand side, ``[T, ...]``.
        products: Hessian products that MINRES takes at most.
        tolerance: relative residual.
    """
    if sum(x[0].numel() for x in b.values()) <= FEW:
        return Dense()
    return MINRES(products, tolerance=tolerance)


SOLVERS = (ConjugateGradient, MINRES, Dense, Nystrom, Neumann, OneStep)
"""All of them: what the command line and recipes know."""
