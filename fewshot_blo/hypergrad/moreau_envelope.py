"""MEHA: a penalty on G minus its Moreau envelope, in one loop of first-order steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, OuterStep, TaskLoss, TaskParams
from fewshot_blo.hypergrad.gradients import inner_gradients, value_gap_step
from fewshot_blo.hypergrad.single_loop import CountedState, check_one_step
from fewshot_blo.hypergrad.strategy import Strategy, inner_start
from fewshot_blo.kernel import SGD, InnerSteps, Order
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import AtLeast, Below, NonNegative, Positive


@dataclass(frozen=True, repr=False)
class MoreauState(CountedState):
    """The proximal point of every inner problem beside its parameters.

    Attributes:
        proximal: θ, ``[T, ...]``; empty for v itself.
    """

    proximal: TaskParams = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class MoreauStep(OuterStep):
    """A step with the proximal point.

    Attributes:
        proximal: θ, ``[T, ...]``.
    """

    proximal: TaskParams


@checked
@dataclass(frozen=True)
class MoreauEnvelope(Strategy[MoreauState]):
    """A step of v, one of θ, ``du = F_u(v) + c_k [G_u(v) - G_u(θ)]``; only first derivatives.

    G is replaced by the constraint ``G(v) - min over θ of [G(θ) + |θ - v|²/2γ] ≤ 0``, with weight
    ``c_k = c (k + 1)^p`` in outer step k, counted from 0. The steps are
    ``v ← v - α [F_v(v)/c_k + G_v(v) - (v - θ)/γ]`` and ``θ ← θ - η [G_v(θ) + (θ - v)/γ]``.

    Where all settles, the errors of v and du fall as ``1/c_k``. The minimum over θ needs no convex
    G, only a γ small enough that ``G + |θ - v|²/2γ`` is convex in θ; v then ends at a stationary
    point of G.

    The paper moves u by ``α du/c_k``: with gradient descent, let the outer learning rate fall as
    ``(k + 1)^-p``. A rate that does not fall is too large in the end. The paper's order is θ, u,
    v; this one begins with v, at the same u.

    Attributes:
        inner: one step of an update rule over v; of SGD in the paper.
        proximal_step_size: η.
        gamma: γ.
        weight: c.
        growth: p, in [0, 1/2): below 1/2 as the paper's proofs need it; 0 for a constant weight.

    Raises:
        ConfigurationError: if a setting is outside of its range.

    Source: Liu, Liu, Yao, Zeng & Zhang, "MEHA" (ICML 2024, arXiv 2405.09927), algorithm 1 for a
    smooth G without constraints. The authors' PyTorch code differs from the paper: it multiplies F
    by c_k and has θ start at zero, where θ starts at v here. Steps of v are not projected.
    """

    inner: InnerSteps = InnerSteps(1, SGD())
    proximal_step_size: NonNegative = 0.1
    gamma: Positive = 1.0
    weight: Positive = 1.0
    growth: Annotated[float, AtLeast(0), Below(0.5)] = 0.25

    def __post_init__(self) -> None:
        check_one_step("MoreauEnvelope", self.inner)

    @property
    def derivatives(self) -> Order:
        """First order."""
        return "first"

    @property
    def needs_warm_start(self) -> bool:
        """One step from anew is no solution of anything."""
        return True

    @property
    def follows(self) -> bool:
        """v and θ take one step from where they were."""
        return True

    @property
    def step_kind(self) -> type[MoreauStep]:
        """With θ."""
        return MoreauStep

    def init(self) -> MoreauState:
        """No step taken."""
        return MoreauState()

    def hypergradient(self, problem: Bilevel, state: MoreauState) -> MoreauStep:
        """Moves v, then θ, and differentiates the penalised objective over u."""
        weight = self.weight * (state.outer_step + 1) ** self.growth
        v = {name: p.detach() for name, p in inner_start(problem, state).items()}
        theta = state.proximal or v

        def penalised(x: TaskParams) -> Tensor:
            return problem.outer_loss(x) / weight + problem.inner_loss(x)

        slope = _gradient(penalised, v)
        direction = {n: g - (v[n] - theta[n]) / self.gamma for n, g in slope.items()}
        rule = self.inner.rule or SGD()
        with torch.no_grad():
            v = rule.update(direction, rule.init(v, problem.outer), v, 0)[0]
        g_v = _gradient(problem.inner_loss, theta)
        eta = self.proximal_step_size
        theta = {n: p - eta * (g_v[n] + (p - v[n]) / self.gamma) for n, p in theta.items()}
        step = value_gap_step(problem, v, theta, weight, method="MoreauEnvelope")
        return MoreauStep(step.gradient, step.inner, step.outer_loss, step.inner_loss, theta)

    def advance(self, state: MoreauState, step: MoreauStep) -> MoreauState:
        """Keeps v and θ, and counts."""
        return MoreauState(step.inner, state.outer_step + 1, step.proximal)


def _gradient(loss: TaskLoss, v: TaskParams) -> TaskParams:
    leaves = {name: p.detach().requires_grad_() for name, p in v.items()}
    gradient = inner_gradients(loss(leaves).sum(), leaves)
    return {name: g.detach() for name, g in gradient.items()}
