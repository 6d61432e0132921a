"""The penalty method: hypergradients without a matrix inverse or an unrolled graph."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Annotated

import torch
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, OuterStep, TaskParams, task_dot
from fewshot_blo.hypergrad.balance import balance
from fewshot_blo.hypergrad.gradients import (
    IN_NO_LOSS,
    add_gradients,
    both_gradients,
    inner_gradients,
)
from fewshot_blo.hypergrad.strategy import State, Strategy, initial, inner_start
from fewshot_blo.kernel import Adam, InnerSteps, adapt
from fewshot_blo.kernel.rules import Scaled, by_task
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import AtLeast, Counting, Natural, NonNegative, Share

_WEIGHT, _WEIGHT_OF_STEPS = 100.0, 10.0
"""Of the penalty relative to F along the mean curvature, so that multipliers settle in few rounds;
and for steps of a given rule, which a stiffer objective soon makes diverge."""

_MOST_ROUNDS = 30
_DONE, _STALLED = 1e-6, 0.9
"""Change of the multipliers, relative to them and to the last change, at which they are settled."""

_LAM_DECAY = 0.98


@dataclass(frozen=True, repr=False)
class PenaltyState(State):
    """Schedules and multipliers of the penalty method.

    Attributes:
        rho, lam, epsilon: ρ, λ and ε.
        outer_step: outer steps taken.
        multipliers: ν, ``[T, ...]``; empty for their initial value.
    """

    rho: Tensor = field(default_factory=lambda: _scalar(0.0))
    lam: Tensor = field(default_factory=lambda: _scalar(0.0))
    epsilon: Tensor = field(default_factory=lambda: _scalar(0.0))
    outer_step: Tensor = field(default_factory=lambda: _scalar(0.0))
    multipliers: TaskParams = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class PenaltyStep(OuterStep):
    """A step of the penalty method.

    Attributes:
        multipliers: ν of the last inner steps, ``[T, ...]``.
        inner_gradient: G_v at ``inner``, ``[T, ...]``.
        residual: squared norm of the gradient over v of the objective of the inner steps, ``[T]``.
    """

    multipliers: TaskParams
    inner_gradient: TaskParams
    residual: Tensor


@checked
@dataclass(frozen=True)
class Penalty(Strategy[PenaltyState]):
    """``min over v`` of ``F + <ν, G_v> + ρ/2 |G_v|² + λ G``, then ``∇_u`` of its first three terms.

    At the minimiser v^ of the first three terms their gradient over u is exactly
    ``F_u - G_uv G_vv^-1 F_v`` at v^, for any ρ > 0: from ``F_v + G_vv (ν + ρ G_v) = 0`` follows
    ``G_uv (ν + ρ G_v) = -G_uv G_vv^-1 F_v``. What remains of the error is that v^ is not the
    minimiser of G; it falls as 1/ρ, or as ν approaches the multiplier. ρ is large only relative
    to the curvature: ``ρ ≫ 1/μ²`` for the smallest eigenvalue μ of ``G_vv``.
    Memory does not depend on the number of inner steps; each costs one Hessian product.

    Whenever ``|∇_u|² + mean_t |∇_v|² ≤ ε²``, and after every ``every`` outer steps,
    ``ν ← ν + ρ G_v``, ``ρ ← c_ρ ρ``, ``λ ← c_λ λ`` and ``ε ← c_ε ε``. Curvature grows with ρ, so
    the steps over v are multiplied by the initial ρ over ρ. Multipliers belong to an inner problem:
    a cold start, with new tasks at every outer step, begins from ``multiplier`` again.

    Attributes:
        inner: T steps over v. The objective is stiff: SGD reaches v^ with a step below
            2 / (ρ L²), L the largest curvature of G. Adam is stable for any ρ, but with a constant
            step it stays at a distance from v^, which adds to the error of the hypergradient.
        rho: ρ at the start, weight of the penalty; where unset, from the curvature of both losses.
        lam: λ at the start, weight of G in the inner objective, which guards against stationary
            points of G that are no minima; where unset, 0 unless G has negative curvature.
        epsilon: ε at the start, the tolerance of the schedules; where unset, they move in every
            outer step.
        multiplier: initial value of every entry of ν.
        rho_growth: c_ρ, at least 1; 1 where unset.
        lam_decay: c_λ, at most 1; 0.98 where unset.
        epsilon_decay: c_ε, at most 1; 1 where unset.
        every: outer steps after which the schedules move whether or not the step was stationary; 0
            for never.
        rounds: minimisations over v in an outer step, with an update of ν between them; where
            unset, as many as bring G_v to zero if the number of inner steps is unset, and else 1.

    Source: Mehra & Hamm (arXiv 1911.03432), lemma and algorithm of section 3, with the augmented
    Lagrangian; its experiments have ρ, λ and ε of 0.01 at the start, c_ρ of 1.1, and c_λ and c_ε of
    0.9.
    """

    inner: InnerSteps = InnerSteps()
    rho: NonNegative | None = None
    lam: NonNegative | None = None
    epsilon: NonNegative | None = None
    multiplier: float = 1e-4
    rho_growth: Annotated[float, AtLeast(1)] | None = None
    lam_decay: Share | None = None
    epsilon_decay: Share | None = None
    every: Natural = 0
    rounds: Counting | None = None

    @property
    def _growth(self) -> float:
        return 1.0 if self.rho_growth is None else self.rho_growth

    @property
    def _lam_decay(self) -> float:
        return _LAM_DECAY if self.lam_decay is None else self.lam_decay

    @property
    def _epsilon_decay(self) -> float:
        return 1.0 if self.epsilon_decay is None else self.epsilon_decay

    def settled(self, problem: Bilevel) -> Penalty:
        """With ``ρ = 100 L_F / (L μ)``, and λ, where they are unset.

        L_F is the largest curvature of F, L and μ the largest and the smallest positive one of G.
        The penalty then outweighs F along the mean curvature, and multipliers do the rest. It is a
        tenth of that where the rule of the inner steps is given, as it was not chosen to suit ρ.
        """
        if self.rho is not None:
            return self
        found = balance(problem)
        weight = _WEIGHT if self.inner.rule is None else _WEIGHT_OF_STEPS
        unguarded = self.lam is not None or bool(found.convex.all())
        return replace(
            self,
            rho=weight * float(found.product.max()),
            lam=(self.lam or 0.0) if unguarded else float(found.largest.max()),
        )

    def for_training(self) -> Penalty:
        """With the settings of the paper's experiments where they are unset."""
        usual = {
            "rho": 1e-2,
            "lam": 1e-2,
            "epsilon": 1e-2,
            "rho_growth": 1.1,
            "lam_decay": 0.9,
            "epsilon_decay": 0.9,
            "rounds": 1,
        }
        unset = {name: value for name, value in usual.items() if getattr(self, name) is None}
        return replace(self, inner=self.inner.filled(20, Adam(1e-2)), **unset)  # type: ignore[arg-type]

    @property
    def step_kind(self) -> type[PenaltyStep]:
        """With the inner gradients, which the multipliers follow."""
        return PenaltyStep

    def init(self) -> PenaltyState:
        """The schedules at their start."""
        return PenaltyState(
            rho=initial("Penalty", "rho", self.rho),
            lam=_scalar(self.lam or 0.0),
            epsilon=_scalar(math.inf if self.epsilon is None else self.epsilon),
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

        inner = adapt(lower_objective, start, self._steps(rho), outer=problem.outer)
        before: Tensor | None = None
        ended = torch.zeros(problem.tasks, dtype=torch.bool, device=rho.device)
        for _ in range(self._most_rounds - 1):
            g_v = self._inner_gradient(problem, inner)
            missing = task_dot(g_v, g_v).sqrt() * rho
            if self.rounds is None:
                done = missing <= _DONE * task_dot(nu, nu).sqrt()
                stalled = done if before is None else missing > _STALLED * before
                ended = ended.to(done.device) | done | stalled
                if bool(ended.all()):
                    break
            before = missing
            last = inner
            nu = {
                name: torch.where(by_task(ended, m), m, m + rho.to(m.dtype) * g_v[name])
                for name, m in nu.items()
            }
            inner = adapt(lower_objective, last, self._steps(rho), outer=problem.outer)
            inner = {n: torch.where(by_task(ended, p), last[n], p) for n, p in inner.items()}
        inner = {name: p.detach().requires_grad_() for name, p in inner.items()}
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
            nu,
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
        taken = state.outer_step + 1
        moves = total <= epsilon**2
        if self.every:
            moves = moves | (taken.to(total.device, non_blocking=True) % self.every == 0)
        update = torch.where(moves, rho, 0.0)
        multipliers = {
            name: nu + update.to(nu.dtype) * step.inner_gradient[name]
            for name, nu in step.multipliers.items()
        }
        return PenaltyState(
            step.inner,
            rho=torch.where(moves, self._growth * rho, rho),
            lam=torch.where(moves, self._lam_decay * lam, lam),
            epsilon=torch.where(moves, self._epsilon_decay * epsilon, epsilon),
            outer_step=taken,
            multipliers=multipliers,
        )

    def _steps(self, rho: Tensor) -> InnerSteps:
        """The inner steps, shorter by as much as ρ has grown; chosen ones measure the curvature."""
        if self.inner.rule is None or self._growth == 1 or not self.rho:
            return self.inner
        return replace(self.inner, rule=Scaled(self.inner.rule, self.rho / rho))

    @property
    def _most_rounds(self) -> int:
        if self.rounds is not None:
            return self.rounds
        return 1 if self.inner.steps is not None else _MOST_ROUNDS

    @staticmethod
    def _inner_gradient(problem: Bilevel, inner: TaskParams) -> TaskParams:
        leaves = {name: p.detach().requires_grad_() for name, p in inner.items()}
        gradient = inner_gradients(problem.inner_loss(leaves).sum(), leaves)
        return {name: g.detach() for name, g in gradient.items()}

    def _multipliers(self, problem: Bilevel, state: PenaltyState) -> TaskParams:
        if state.multipliers:
            return state.multipliers
        fill = self.multiplier
        return {name: torch.full_like(p, fill).detach() for name, p in problem.inner_init.items()}


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
