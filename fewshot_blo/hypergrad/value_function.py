"""First-order penalties on the value function: gradients of the losses and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated

import torch
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, OuterStep, TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad.balance import balance
from fewshot_blo.hypergrad.gradients import value_gap_step
from fewshot_blo.hypergrad.strategy import (
    Bears,
    State,
    Strategy,
    initial,
    inner_start,
)
from fewshot_blo.kernel import SGD, InnerSteps, Order, adapt
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import AtLeast, Natural, NonNegative, OrInfinite


@dataclass(frozen=True, repr=False)
class ValueFunctionState(State):
    """The schedule of the value-function penalty.

    Attributes:
        lam: λ.
    """

    lam: Tensor = field(default_factory=lambda: torch.tensor(0.0, dtype=torch.float64))


@checked
@dataclass(frozen=True)
class ValueFunction(Strategy[ValueFunctionState]):
    """``v ≈ argmin F + λ G``, ``z ≈ argmin G``, then ``du = F_u(v) + λ (G_u(v) - G_u(z))``.

    The inner problem is replaced by ``G(v, u) - min over z of G(z, u) ≤ 0``, with weight λ. No
    second derivative is taken. At exact minimisers the error falls as 1/λ once ``λ ≫ 1/μ``, μ the
    smallest curvature of G; what v and z lack to their minimisers is multiplied by λ.

    The steps over v are on ``min(1/λ, 1) (F + λ G)``, so that a step size for G suits them.

    Attributes:
        inner: steps over v; their rule is that of z, too.
        value_steps: inner steps over z; to the tolerance of the steps over v where unset.
        lam: λ at the start; where unset, from the curvature of both losses.
        lam_growth: added to λ after each outer step.
        lam_max: λ grows no further.
        continued: z starts where v ended, as in V-PBGD; otherwise where v started.

    Source: Kwon et al., "F2SA" (arXiv 2301.10945), with a growing λ; Chen et al., "F2BA" (arXiv
    2306.14853), with a large constant one; Shen & Chen, "V-PBGD" (arXiv 2302.05185): ``continued``,
    a warm start and ``steps=1``, λ growing to a constant.
    """

    inner: InnerSteps = InnerSteps()
    value_steps: Natural | None = None
    lam: NonNegative | None = None
    lam_growth: NonNegative = 0.0
    lam_max: Annotated[float, AtLeast(0), OrInfinite()] = float("inf")
    continued: bool = False

    def __post_init__(self) -> None:
        if self.lam is not None and self.lam_max < self.lam:
            raise ConfigurationError(
                f"lam_max is {self.lam_max} and lam is {self.lam}: "
                "lam grows from the one to the other"
            )

    @property
    def bears(self) -> Bears:
        """Where v is feasible for all u, the derivative of ``min G`` is that of G alone."""
        return "fixed sets"

    @property
    def derivatives(self) -> Order:
        """First order."""
        return "first"

    def settled(self, problem: Bilevel) -> ValueFunction:
        """With ``λ = L_F / (a μ)`` where it is unset, which leaves a relative error of about a.

        L_F is the curvature of F, μ the smallest one of G; a is 1e-4 in float64 and 3e-3 in
        float32, whose rounding λ multiplies.
        """
        if self.lam is not None:
            return self
        error = 1e-4 if next(iter(problem.inner_init.values())).dtype == torch.float64 else 3e-3
        weight = balance(problem).positive / error
        return replace(self, lam=min(float(weight.max()), self.lam_max))

    def for_training(self) -> ValueFunction:
        """With 20 steps of gradient descent over v and z, and λ = 100, where they are unset."""
        return replace(
            self,
            inner=self.inner.filled(20, SGD()),
            value_steps=20 if self.value_steps is None else self.value_steps,
            lam=min(100.0, self.lam_max) if self.lam is None else self.lam,
        )

    def init(self) -> ValueFunctionState:
        """λ at its start."""
        return ValueFunctionState(lam=initial("ValueFunction", "lam", self.lam))

    def hypergradient(self, problem: Bilevel, state: ValueFunctionState) -> OuterStep:
        """Minimises the penalised objective and G apart, and differentiates their difference."""
        start, lam = inner_start(problem, state), state.lam

        def penalised(v: TaskParams) -> Tensor:
            scale = (1 / lam).clamp(max=1)
            return scale * problem.outer_loss(v) + scale * lam * problem.inner_loss(v)

        v = adapt(penalised, start, self.inner, outer=problem.outer, project=problem.project)
        z = adapt(
            problem.inner_loss,
            v if self.continued else start,
            replace(self.inner, steps=self.value_steps),
            outer=problem.outer,
            project=problem.project,
        )
        return value_gap_step(problem, v, z, lam, method="ValueFunction")

    def advance(self, state: ValueFunctionState, step: OuterStep) -> ValueFunctionState:
        """Lets λ grow, and keeps v for a warm start."""
        lam = (state.lam + self.lam_growth).clamp(max=self.lam_max)
        return replace(state, lam=lam, inner=step.inner)
