"""Implicit differentiation by differences of gradients, without a second derivative."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, OuterStep, TaskParams, task_dot
from fewshot_blo.hypergrad.gradients import (
    IN_NO_LOSS,
    add_gradients,
    both_gradients,
    inner_gradients,
    outer_gradients,
)
from fewshot_blo.hypergrad.linear_solve import MINRES, ConjugateGradient, LinearSolver
from fewshot_blo.hypergrad.strategy import State, Strategy, inner_start
from fewshot_blo.hypergrad.systems import add_scaled
from fewshot_blo.kernel import SGD, InnerSteps, Order, adapt
from fewshot_blo.kernel.rules import by_task
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Positive

_MOST_PRODUCTS = 500
"""Hessian products of the linear solver where it is unset; it stops by its tolerance before."""

_TOLERANCE, _FLOAT32_TOLERANCE = 1e-8, 1e-4
"""Its relative residual in float64 and float32: above the error of a product by differences."""


@checked
@dataclass(frozen=True)
class FiniteDifference(Strategy[State]):
    """``Implicit`` with ``H q ≈ [G_v(v + εq) - G_v(v - εq)] / 2ε``, and ``G_uv q`` likewise.

    ``du = F_u - G_uv q`` with ``G_vv q = F_v``, at the v that the inner steps reach. All that it
    takes are first derivatives, two gradients of G a product, so that G may have layers that
    PyTorch differentiates once only. Valid where ``Implicit`` is. Each task has an ε of its own
    for every product: ``ε = length / |q|``.

    The error of a product is of two parts, of the order of ``length²`` (none where G is quadratic
    in v) and of rounding over ``length``. Where ``G_vv`` is well conditioned, hypergradients have
    an error of about 1e-10 in float64 and 1e-4 in float32; it grows with the condition number.
    G_v must be smooth over that distance. With ReLU or max-pooling between the inner parameters
    and G it has jumps: with all weights of a Conv4 as inner parameters, hypergradients in float32
    were wrong by more than their own size, and those of a head on it right to 2e-5.

    ``OneStep(α)`` with one inner step of size α is DARTS: the derivative through that one step.
    It takes α for the inverse of ``G_vv`` and is biased unless that is so. DARTS takes the
    difference where the step begins; here it is taken where the step ends, as F is, which is the
    same where G is quadratic in v.

    Attributes:
        inner: inner steps.
        solve: linear solver for q; where unset, MINRES to a relative residual of 1e-8 in float64
            and 1e-4 in float32.
        length: distance of ``v ± εq`` from v, 0.01 in DARTS; where unset,
            ``2 (rounding (1 + |v|))^(1/3)``, which is 0.01 in float32 and 1e-5 in float64 at v = 0.

    Raises:
        ConfigurationError: if the length is not positive.

    Source: Liu, Simonyan & Yang, "DARTS" (arXiv 1806.09055), equations 7 and 8.
    """

    inner: InnerSteps = InnerSteps()
    solve: LinearSolver | None = None
    length: Positive | None = None

    @property
    def derivatives(self) -> Order:
        """First order."""
        return "first"

    def for_training(self) -> FiniteDifference:
        """With 16 steps of gradient descent and conjugate gradients where they are unset."""
        solve = ConjugateGradient() if self.solve is None else self.solve
        return replace(self, inner=self.inner.filled(16, SGD()), solve=solve)

    def hypergradient(self, problem: Bilevel, state: State) -> OuterStep:
        """Adapts without a graph, solves for q and takes one more difference, over u."""
        v = adapt(problem.inner_loss, inner_start(problem, state), self.inner, outer=problem.outer)
        leaves = {name: p.requires_grad_() for name, p in v.items()}
        f = problem.outer_loss(leaves)
        f_v, f_u = both_gradients(f, leaves, problem.outer)
        v = {name: p.detach() for name, p in v.items()}
        length = self._length(v)

        def hessian_product(x: TaskParams) -> TaskParams:
            sides = [_slope(problem, side) for side in _beside(v, x, length)]
            scale = _norm(x) / (2 * length)
            return {n: by_task(scale, p) * (p - sides[1][n]) for n, p in sides[0].items()}

        q = self._solver(length.dtype)(hessian_product, f_v)
        ahead, behind = _beside(v, q, length)
        # One pass, since both sides may share what G computes from u alone.
        gap = problem.inner_loss(behind) - problem.inner_loss(ahead)
        minus_g_uv_q = outer_gradients((_norm(q) / (2 * length) * gap).mean(), problem.outer)
        gradient = add_gradients(
            problem.outer, [f_u, minus_g_uv_q], method="FiniteDifference", remedy=IN_NO_LOSS
        )
        with torch.no_grad():
            g = problem.inner_loss(v)
        return OuterStep(gradient, v, f.detach(), g)

    def _length(self, v: TaskParams) -> Tensor:
        """How far from v gradients are taken, ``[T]``: rounding of v over it is its square."""
        size = 1 + _norm(v)
        if self.length is not None:
            return torch.full_like(size, self.length)
        return 2 * (torch.finfo(size.dtype).eps * size) ** (1 / 3)

    def _solver(self, dtype: torch.dtype) -> LinearSolver:
        if self.solve is not None:
            return self.solve
        tolerance = _TOLERANCE if dtype == torch.float64 else _FLOAT32_TOLERANCE
        return MINRES(_MOST_PRODUCTS, tolerance=tolerance)


def _norm(x: TaskParams) -> Tensor:
    return task_dot(x, x).sqrt()


def _beside(v: TaskParams, x: TaskParams, length: Tensor) -> tuple[TaskParams, TaskParams]:
    """v plus and minus a step of that length along x, or v itself where x is zero."""
    size = _norm(x)
    epsilon = length / size.where(size != 0, 1)
    return add_scaled(v, epsilon, x), add_scaled(v, -epsilon, x)


def _slope(problem: Bilevel, v: TaskParams) -> TaskParams:
    leaves = {name: p.detach().requires_grad_() for name, p in v.items()}
    gradient = inner_gradients(problem.inner_loss(leaves).sum(), leaves)
    return {name: g.detach() for name, g in gradient.items()}
