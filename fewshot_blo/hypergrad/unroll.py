"""Differentiation through the inner steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, OuterStep, TaskParams, sum_tensors
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad.gradients import add_gradients, outer_gradients
from fewshot_blo.hypergrad.strategy import (
    Bears,
    Sees,
    State,
    Strategy,
    inner_start,
)
from fewshot_blo.hypergrad.unrolled_steps import chosen_steps
from fewshot_blo.kernel import SGD, InnerSteps, Order, adapt
from fewshot_blo.kernel.adapt import at_step
from fewshot_blo.kernel.recompute import KEPT_STEPS
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Natural

_UNUSED = (
    "freeze it with requires_grad_(False) if it is not in use; with first_order it must be in the "
    "outer loss or in the start"
)
_REPLACED_START = (
    "the inner problem started where the last one ended (warm start), which replaces the start "
    "that is to be learned: use a cold start, which is state.cold() in a loop of your own"
)


@dataclass(frozen=True, repr=False)
class UnrollState(State):
    """The number of outer steps taken, for settings that change in the course of training.

    Attributes:
        outer_step: outer steps taken.
    """

    outer_step: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))


@checked
@dataclass(frozen=True)
class Unroll(Strategy[UnrollState]):
    """``v_{k+1} = v_k - α ∇_v G(v_k, u)`` for T steps, then ``d/du mean_t F(v_T(u), u)``.

    Valid for any inner problem, at any distance from its minimum: it differentiates the algorithm
    and not the minimiser. Memory grows with ``steps`` unless ``recompute``.

    Attributes:
        inner: T inner steps; with a tolerance, or where their number is unset, as many as solve the
            inner problem of each task and its derivative. A number of steps needs a rule.
        first_order: treat inner gradients as constants.
        truncate: number of last steps that are differentiated exactly, the earlier ones to first
            order; all where unset.
        recompute: store the parameters before each step and recompute its graph in the backward
            pass. Where unset, training measures both ways on its first tasks, and a single call
            recomputes where more than 5 steps are differentiated exactly.
        multi_step: outer steps over which the loss moves from all inner steps to the last: it is
            ``Σ_k w_k F(v_k)``, with weights from equal ones to 0, ..., 0, 1. 0 for the last alone.
        first_order_steps: outer steps at the beginning that treat inner gradients as constants,
            which is cheaper and steadier.

    Source: Finn et al., "MAML" (arXiv 1703.03400), equation 1; first order: section 5.2;
    truncation: Shaban et al. (arXiv 1810.10667); multi-step loss and derivative-order annealing:
    Antoniou et al., "MAML++" (arXiv 1810.09502), section 4, with the weights of its code.
    """

    inner: InnerSteps = InnerSteps()
    first_order: bool = False
    truncate: Natural | None = None
    recompute: bool | None = None
    multi_step: Natural = 0
    first_order_steps: Natural = 0

    def __post_init__(self) -> None:
        if self.multi_step and (self.recompute or not self.inner.most):
            raise ConfigurationError(
                "multi_step needs the parameters after each inner step: use at least one step, and "
                "no recompute"
            )
        if self.first_order and self.truncate is not None:
            raise ConfigurationError(
                f"first_order and truncate={self.truncate} exclude each other: "
                "first order is truncation to 0 steps"
            )

    @property
    def derivatives(self) -> Order:
        """First order where no inner step is differentiated exactly."""
        return "second" if self._exact else "first"

    @property
    def bears(self) -> Bears:
        """It differentiates projections as part of the steps."""
        return "sets"

    @property
    def sees(self) -> Sequence[Sees]:
        """The start and the outer loss; the inner loss where steps are differentiated exactly."""
        steps: tuple[Sees, ...] = ("rule", "inner") if self._exact else ("rule",)
        return ("start", "outer", *(steps if self.inner.most else ()))

    @property
    def needs_minimiser(self) -> bool:
        """It differentiates the inner steps, wherever they end."""
        return False

    @property
    def phases(self) -> tuple[tuple[int, Strategy[UnrollState]], ...]:
        """First order and the multi-step loss end at outer steps of their own."""
        return self._phases

    @cached_property
    def _phases(self) -> tuple[tuple[int, Strategy[UnrollState]], ...]:
        # Made once: CUDA graphs belong to one object.
        found: list[tuple[int, Strategy[UnrollState]]] = []
        for start in sorted({0, self.first_order_steps, self.multi_step}):
            phase = replace(self, first_order_steps=0)
            if start < self.first_order_steps:
                phase = replace(phase, first_order=True, truncate=None)
            if start >= self.multi_step:
                phase = replace(phase, multi_step=0)
            found.append((start, phase))
        return tuple(found)

    @property
    def _exact(self) -> int:
        """How many inner steps are differentiated exactly."""
        exact = 0 if self.first_order else self.inner.most
        return exact if self.truncate is None else min(exact, self.truncate)

    def with_recompute(self, recompute: bool | None) -> Unroll:
        """The strategy with ``recompute`` set; itself where it is set or makes no difference.

        Args:
            recompute: None recomputes where more than 5 steps are differentiated exactly.
        """
        exact = self._exact
        if self.recompute is not None or self.multi_step or not exact:
            return self
        return replace(self, recompute=exact > KEPT_STEPS if recompute is None else recompute)

    def shortened(self, steps: int) -> Unroll:
        """The strategy with at most ``steps`` inner steps.

        Time and memory are affine in the number of steps, so two short runs tell those of a long
        one. Itself with ``truncate``, where steps differ in cost.
        """
        if self.truncate is not None or steps >= self.inner.most:
            return self
        return replace(self, inner=replace(self.inner, steps=steps))

    def for_training(self) -> Unroll:
        """With 5 steps of gradient descent where they are unset."""
        return replace(self, inner=self.inner.filled(5, SGD()))

    def init(self) -> UnrollState:
        """The state before the first outer step."""
        return UnrollState()

    @property
    def is_derivative(self) -> bool:
        """Where it goes through all steps."""
        return not self.first_order and self.truncate is None

    def hypergradient(self, problem: Bilevel, state: UnrollState) -> OuterStep:
        """Adapts with a graph and differentiates through it."""
        if self.first_order_steps:
            return self.at(int(state.outer_step)).hypergradient(problem, state)
        start = inner_start(problem, state)
        chosen = chosen_steps(problem, start, self.inner)
        steps = chosen.steps
        losses: list[Tensor] = []

        def evaluate(number: int, v: TaskParams) -> None:
            if number < steps.most - 1:
                with at_step(number):
                    losses.append(problem.outer_loss(v))

        inner = adapt(
            problem.inner_loss,
            start,
            steps,
            outer=problem.outer,
            project=problem.project,
            derivatives="first" if self.first_order else "second",
            second_order_steps=self.truncate,
            recompute=bool(replace(self, inner=steps).with_recompute(None).recompute),
            visit=evaluate if self.multi_step else None,
        )
        outer_loss = problem.outer_loss(inner)
        total = outer_loss
        if self.multi_step:
            weights = self._step_weights(state.outer_step, steps.most)
            parts = zip(weights, [*losses, outer_loss], strict=True)
            total = sum_tensors([weight * loss for weight, loss in parts])
        gradient = add_gradients(
            problem.outer,
            [outer_gradients(total.mean(), problem.outer)],
            method="Unroll",
            remedy=_REPLACED_START if state.inner else _UNUSED,
        )
        inner = {name: p.detach() for name, p in inner.items()}
        with torch.no_grad():
            inner_loss = problem.inner_loss(inner)
        figures = {} if chosen.counts is None else {"inner_steps": chosen.counts.to(inner_loss)}
        return OuterStep(gradient, inner, outer_loss.detach(), inner_loss, figures=figures)

    def advance(self, state: UnrollState, step: OuterStep) -> UnrollState:
        """Counts outer steps, and keeps the inner parameters for a warm start."""
        return UnrollState(step.inner, state.outer_step + 1)

    def _step_weights(self, outer_step: Tensor, steps: int) -> list[Tensor]:
        """w_k: weights of earlier steps fall linearly to 3 % of equal ones, and then to zero."""
        done = outer_step / self.multi_step
        earlier = torch.where(done < 1, (1 - done).clamp(min=0.03), 0) / steps
        return [earlier] * (steps - 1) + [1 - (steps - 1) * earlier]
