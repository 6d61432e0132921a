"""Reptile: the start of the inner problems moves towards where they end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, OuterStep, TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad.gradients import add_gradients
from fewshot_blo.hypergrad.strategy import Sees, State, Strategy
from fewshot_blo.kernel import SGD, InnerSteps, Order, adapt
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Share


@checked
@dataclass(frozen=True)
class Reptile(Strategy[State]):
    """``du = mean_t (v_0 - v_T)``, carried to the outer variables that v_0 depends on.

    No gradient of a loss: with plain gradient descent as outer optimizer, the start moves along
    the line to the adapted parameters. Only what the start depends on can be learned, so it is
    defined for an initialization, and there for the parameters that adapt.

    Attributes:
        inner: T inner steps.
        query_weight: w of ``(1 - w) G + w F``, the objective of the inner steps. The paper takes
            all images of a task: 1/2 does so where shot and query are as many.

    Source: Nichol et al., "Reptile" (arXiv 1803.02999), algorithm 2.
    """

    inner: InnerSteps = InnerSteps()
    query_weight: Share = 0.5

    def for_training(self) -> Reptile:
        """With 8 steps of gradient descent where they are unset."""
        return replace(self, inner=self.inner.filled(8, SGD()))

    @property
    def derivatives(self) -> Order:
        """First order."""
        return "first"

    @property
    def sees(self) -> Sequence[Sees]:
        """The start alone."""
        return ("start",)

    @property
    def is_derivative(self) -> bool:
        """It is a displacement."""
        return False

    def hypergradient(self, problem: Bilevel, state: State) -> OuterStep:
        """Adapts without a graph and compares the end with the start.

        Raises:
            ConfigurationError: if the start is a warm one.
        """
        if state.inner:
            raise ConfigurationError(
                "Reptile learns where the inner problems start: use a cold start"
            )
        weight = self.query_weight

        def all_images(v: TaskParams) -> Tensor:
            loss = (1 - weight) * problem.inner_loss(v)
            return loss + weight * problem.outer_loss(v) if weight else loss

        start = problem.inner_init
        inner = adapt(all_images, start, self.inner, outer=problem.outer)
        difference = {name: (p.detach() - inner[name]) / problem.tasks for name, p in start.items()}
        gradient = add_gradients(
            problem.outer,
            [_through_start(problem, difference)],
            method="Reptile",
            remedy="Reptile learns the start of the inner problems alone: adapt all parameters, "
            "freeze the others with requires_grad_(False), or use Unroll with first_order",
        )
        with torch.no_grad():
            outer_loss, inner_loss = problem.outer_loss(inner), problem.inner_loss(inner)
        return OuterStep(gradient, inner, outer_loss, inner_loss)


def _through_start(problem: Bilevel, cotangent: TaskParams) -> dict[str, Tensor | None]:
    """The product of the cotangent with the derivative of the start by the outer variables."""
    moving = [name for name, p in problem.inner_init.items() if p.requires_grad]
    if not moving:
        return dict.fromkeys(problem.outer)
    gradients = torch.autograd.grad(
        [problem.inner_init[name] for name in moving],
        list(problem.outer.values()),
        [cotangent[name] for name in moving],
        allow_unused=True,
        retain_graph=True,
    )
    return dict(zip(problem.outer, gradients, strict=True))
