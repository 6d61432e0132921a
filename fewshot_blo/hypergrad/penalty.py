"""The penalty method: hypergradients without a matrix inverse or an unrolled graph."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, OuterStep, TaskParams, task_dot
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad.strategy import (
    IN_NO_LOSS,
    State,
    Strategy,
    add_gradients,
    both_gradients,
    check_not_negative,
    inner_gradients,
    inner_start,
)
from fewshot_blo.kernel import Adam, InnerSteps, adapt


@dataclass(frozen=True, repr=False)
class PenaltyState(State):
    """Schedules and multipliers of the penalty method.

    Attributes:
        rho, lam, epsilon: ρ, λ and ε.
        multipliers: ν, ``[T, ...]``; empty for their initial value.
    """

    rho: Tensor = field(default_factory=lambda: _scalar(0.0))
    lam: Tensor = field(default_factory=lambda: _scalar(0.0))
    epsilon: Tensor = field(default_factory=lambda: _scalar(0.0))
    multipliers: TaskParams = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class PenaltyStep(OuterStep):
    """A step of the penalty method.

    Attributes:
        inner_gradient: G_v at ``inner``, ``[T, ...]``.
        residual: squared norm of the gradient over v of the objective of the inner steps, ``[T]``.
    """

    inner_gradient: TaskParams
    residual: Tensor


@dataclass(frozen=True)
class Penalty(Strategy[PenaltyState]):
    """``min over v`` of ``F + <ν, G_v> + ρ/2 |G_v|² + λ G``, then ``∇_u`` of its first three terms.

    At the minimiser v^ of the first three terms their gradient over u is exactly
    ``F_u - G_uv G_vv^-1 F_v`` at v^, for any ρ > 0: from ``F_v + G_vv (ν + ρ G_v) = 0`` follows
    ``G_uv (ν + ρ G_v) = -G_uv G_vv^-1 F_v``. What remains of the error is that v^ is not the
    minimiser of G; it falls as 1/ρ, or as ν approaches the multiplier. ρ is large only relative
    to the curvature: ``ρ ≫ 1/μ²`` for the smallest eigenvalue μ of ``G_vv``.
    Memory does not depend on the number of inner steps; each costs one Hessian product.

    Whenever ``|∇_u|² + mean_t |∇_v|² ≤ ε²``, ``ν ← ν + ρ G_v``, ``ρ ← c_ρ ρ``, ``λ ← c_λ λ`` and
    ``ε ← c_ε ε``. Multipliers belong to an inner problem: a cold start, with new tasks at every
    outer step, begins from ``multiplier`` again.

    Attributes:
        inner: T steps over v. The objective is stiff: SGD reaches v^ with a step below
            2 / (ρ L²), L the largest curvature of G. Adam is stable for any ρ, but with a constant
            step it stays at a distance from v^, which adds to the error of the hypergradient.
        rho: ρ at the start, weight of the penalty.
        lam: λ at the start, weight of G in the inner objective; it guards against stationary
            points of G that are no minima.
        epsilon: ε at the start, the tolerance of the schedules.
        multiplier: initial value of every entry of ν.
        rho_growth: c_ρ, at least 1.
        lam_decay: c_λ, at most 1.
        epsilon_decay: c_ε, at most 1.

    Source: Mehra & Hamm (arXiv 1911.03432), lemma and algorithm of section 3, with the augmented
    Lagrangian; the defaults are those of its experiments.
    """

    inner: InnerSteps = InnerSteps(20, Adam(1e-2))
    rho: float = 1e-2
    lam: float = 1e-2
    epsilon: float = 1e-2
    multiplier: float = 1e-4
    rho_growth: float = 1.1
    lam_decay: float = 0.9
    epsilon_decay: float = 0.9

    def __post_init__(self) -> None:
        check_not_negative("Penalty", rho=self.rho, lam=self.lam, epsilon=self.epsilon)
        if self.rho_growth < 1 or self.lam_decay > 1 or self.epsilon_decay > 1:
            raise ConfigurationError(
                f"Penalty: rho_growth is {self.rho_growth} and must be at least 1, lam_decay is "
                f"{self.lam_decay} and epsilon_decay {self.epsilon_decay} and must be at most 1"
            )

    @property
    def step_kind(self) -> type[PenaltyStep]:
        """With the inner gradients, which the multipliers follow."""
        return PenaltyStep

    def init(self) -> PenaltyState:
        """The schedules at their start."""
        return PenaltyState(
            rho=_scalar(self.rho), lam=_scalar(self.lam), epsilon=_scalar(self.epsilon)
        )

    def hypergradient(self, problem: Bilevel, state: PenaltyState) -> PenaltyStep:
        """Minimises the penalised objective over v and differentiates it over u."""
        start = inner_start(problem, state)
        nu = self._multipliers(problem, state)
        rho, lam = state.rho, state.lam

        def penalised(f: Tensor, g_v: TaskParams) -> Tensor:
            return f + task_dot(nu, g_v) + 0.5 * rho * task_dot(g_v, g_v)

        def lower_objective(v: TaskParams) -> Tensor:
            g = problem.inner_loss(v)
            g_v = inner_gradients(g.sum(), v, create_graph=True)
            return penalised(problem.outer_loss(v), g_v) + lam * g

        inner = adapt(lower_objective, start, self.inner, outer=problem.outer)
        inner = {name: p.requires_grad_() for name, p in inner.items()}
        f, g = problem.outer_loss(inner), problem.inner_loss(inner)
        g_v = inner_gradients(g.sum(), inner, create_graph=True)
        upper_v, upper_u = both_gradients(penalised(f, g_v), inner, problem.outer)
        gradient = add_gradients(problem.outer, [upper_u], method="Penalty", remedy=IN_NO_LOSS)
        g_v = {name: p.detach() for name, p in g_v.items()}
        lower_v = {name: p + lam * g_v[name] for name, p in upper_v.items()}
        return PenaltyStep(
            gradient,
            {name: p.detach() for name, p in inner.items()},
            f.detach(),
            g.detach(),
            g_v,
            task_dot(lower_v, lower_v),
        )

    def advance(self, state: PenaltyState, step: PenaltyStep) -> PenaltyState:
        """Tightens the schedules where the step was stationary to within ε."""
        squared = [g.double().square().sum() for g in step.gradient.values()]
        squared.append(step.residual.double().mean())
        total = torch.stack(squared).sum()
        # Schedules move to the gradients' device, which avoids a host sync.
        rho, lam, epsilon = (
            schedule.to(total.device, non_blocking=True)
            for schedule in (state.rho, state.lam, state.epsilon)
        )
        stationary = total <= epsilon**2
        update = torch.where(stationary, rho, 0.0)
        multipliers = {
            name: state.multipliers.get(name, torch.full_like(g_v, self.multiplier)) + update * g_v
            for name, g_v in step.inner_gradient.items()
        }
        return PenaltyState(
            step.inner,
            rho=torch.where(stationary, self.rho_growth * rho, rho),
            lam=torch.where(stationary, self.lam_decay * lam, lam),
            epsilon=torch.where(stationary, self.epsilon_decay * epsilon, epsilon),
            multipliers=multipliers,
        )

    def _multipliers(self, problem: Bilevel, state: PenaltyState) -> TaskParams:
        if state.multipliers:
            return state.multipliers
        fill = self.multiplier
        return {name: torch.full_like(p, fill).detach() for name, p in problem.inner_init.items()}


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
