"""Differentiation of the inner minimiser by the implicit function theorem."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, OuterStep, TaskParams, task_dot
from fewshot_blo.hypergrad.constrained import (
    FIRST_SMOOTHING,
    LAST_SMOOTHING,
    Scales,
    scales_of,
    solved_inner,
)
from fewshot_blo.hypergrad.gradients import (
    IN_NO_LOSS,
    add_gradients,
    both_gradients,
    hessian_products,
    inner_gradients,
    outer_gradients,
)
from fewshot_blo.hypergrad.linear_solve import ConjugateGradient, LinearSolver, chosen_solver
from fewshot_blo.hypergrad.newton import solved_or_adapted
from fewshot_blo.hypergrad.strategy import Bears, State, Strategy, inner_start
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.records.checked import checked

_MOST_PRODUCTS = 500
"""Hessian products of the linear solver where it is unset; it stops by its tolerance before."""


@dataclass(frozen=True, repr=False)
class ImplicitState(State):
    """How exactly constrained inner problems are solved; without constraints nothing changes.

    Attributes:
        smoothing: complementarity that is left of inner constraints.
        inner_scale, outer_scale: sizes of the losses' derivatives at the start; 0 before it.
        multipliers: ``y`` and ``z`` of the inner constraints, ``[1, ...]``.
    """

    smoothing: Tensor = field(default_factory=lambda: _number(FIRST_SMOOTHING))
    inner_scale: Tensor = field(default_factory=lambda: _number(0.0))
    outer_scale: Tensor = field(default_factory=lambda: _number(0.0))
    multipliers: TaskParams = field(default_factory=dict)


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@dataclass(frozen=True, repr=False)
class ImplicitStep(OuterStep):
    """With what the next inner problem with constraints starts from.

    Attributes:
        multipliers: ``y`` and ``z`` of the inner constraints, ``[1, ...]``; empty without.
    """

    multipliers: TaskParams = field(default_factory=dict, kw_only=True)


@checked
@dataclass(frozen=True)
class Implicit(Strategy[ImplicitState]):
    """``du = F_u - G_uv q`` with ``G_vv q = F_v``, at the v that the inner steps reach.

    Valid where v is close to a minimiser of G. With conjugate gradients ``G_vv`` must be positive
    definite there: the inner problem then needs a proximal or l2 term. With constraints v and its
    multipliers solve the Karush-Kuhn-Tucker conditions, which are differentiated in place of
    ``G_v = 0``. Memory does not depend on the number of inner steps.

    Attributes:
        inner: inner steps.
        solve: linear solver for q; where unset, Dense for at most 100 parameters, and else MINRES
            to a relative residual of 1e-8. Both may be used on singular and indefinite ``G_vv``.

    Source: Rajeswaran et al., "iMAML" (arXiv 1909.04630), equation 6 and algorithm 2; Neumann:
    Lorraine et al. (arXiv 1911.02590); one step: Luketina et al. (arXiv 1511.06727). As in iMAML's
    paper, the proximal term is in every inner step and in ``G_vv``, and in adaptation at test. Its
    published code takes the inner steps without it and then a single step of it, solves for q with
    another matrix than the paper's, and adapts at test without it.
    """

    inner: InnerSteps = InnerSteps()
    solve: LinearSolver | None = None

    def for_training(self) -> Implicit:
        """With 16 steps of gradient descent and conjugate gradients where they are unset."""
        solve = ConjugateGradient() if self.solve is None else self.solve
        return replace(self, inner=self.inner.filled(16, SGD()), solve=solve)

    @property
    def bears(self) -> Bears:
        """It differentiates the conditions of Karush, Kuhn and Tucker."""
        return "all"

    def init(self) -> ImplicitState:
        """With the most smoothing."""
        return ImplicitState()

    @property
    def step_kind(self) -> type[OuterStep]:
        """With multipliers."""
        return ImplicitStep

    def advance(self, state: ImplicitState, step: ImplicitStep) -> ImplicitState:
        """With its inner parameters, multipliers and scales."""
        if not step.multipliers:
            return replace(state, inner=step.inner)
        scales = {n: step.figures[n].double().mean().cpu() for n in ("inner_scale", "outer_scale")}
        return replace(state, inner=step.inner, multipliers=step.multipliers, **scales)

    def coarseness(self, state: ImplicitState, problem: Bilevel) -> float:
        """The smoothing of constraints."""
        return 0.0 if problem.constraints is None else float(state.smoothing)

    def refined(self, state: ImplicitState) -> ImplicitState | None:
        """A tenth of the smoothing."""
        if float(state.smoothing) <= LAST_SMOOTHING * 1.01:
            return None
        return replace(state, smoothing=state.smoothing / 10)

    def hypergradient(self, problem: Bilevel, state: ImplicitState) -> OuterStep:
        """Adapts without a graph, solves for q and differentiates once."""
        if problem.constraints is not None:
            return self._with_constraints(problem, state)
        inner = solved_or_adapted(problem, inner_start(problem, state), self.inner)
        inner = {name: p.requires_grad_() for name, p in inner.items()}
        outer_loss = problem.outer_loss(inner)
        f_v, f_u = both_gradients(outer_loss, inner, problem.outer)
        inner_loss = problem.inner_loss(inner)
        g_v = inner_gradients(inner_loss.sum(), inner, create_graph=True)
        solve = chosen_solver(f_v, _MOST_PRODUCTS) if self.solve is None else self.solve
        q = solve(hessian_products(g_v, inner), f_v)
        minus_g_uv_q = outer_gradients(-task_dot(g_v, q).mean(), problem.outer)
        gradient = add_gradients(
            problem.outer,
            [f_u, minus_g_uv_q],
            method="Implicit",
            remedy=IN_NO_LOSS,
        )
        return ImplicitStep(
            gradient,
            {name: p.detach() for name, p in inner.items()},
            outer_loss.detach(),
            inner_loss.detach(),
        )

    def _with_constraints(self, problem: Bilevel, state: ImplicitState) -> OuterStep:
        """Solves and differentiates the optimality conditions, with dense matrices."""
        start = inner_start(problem, state)
        scales = Scales(float(state.inner_scale), float(state.outer_scale))
        if not scales.inner:
            scales = scales_of(problem, start)
        warm = state.multipliers if state.inner else None
        inner = solved_inner(
            problem, start, float(state.smoothing), scales=scales, multipliers=warm
        )
        v = {name: p.requires_grad_() for name, p in inner.params.items()}
        outer_loss = problem.outer_loss(v)
        f_v, f_u = both_gradients(outer_loss, v, problem.outer)
        through_v = inner.derivative(f_v, problem.outer, excess=True)
        gradient = add_gradients(
            problem.outer, [f_u, through_v], method="Implicit", remedy=IN_NO_LOSS
        )
        with torch.no_grad():
            inner_loss = problem.inner_loss(v).detach()
        numbers = {
            "newton_steps": inner.point.steps,
            "inner_scale": scales.inner,
            "outer_scale": scales.outer,
        }
        return ImplicitStep(
            gradient,
            {name: p.detach() for name, p in v.items()},
            outer_loss.detach() + inner.excess,
            inner_loss,
            figures={n: torch.full_like(inner_loss, x) for n, x in numbers.items()},
            multipliers={"y": inner.point.y[None], "z": inner.point.z[None]},
        )
