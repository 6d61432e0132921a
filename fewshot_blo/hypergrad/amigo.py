"""AmIGO: implicit differentiation whose inner parameters and dual both start warm."""

from __future__ import annotations

from dataclasses import dataclass

from fewshot_blo.bilevel import Bilevel
from fewshot_blo.hypergrad.gradients import IN_NO_LOSS, add_gradients, both_gradients
from fewshot_blo.hypergrad.single_loop import (
    DualState,
    DualStep,
    dual_start,
    dual_step,
    fallen,
    inner_graph,
    minus_cross,
    sampled_products,
    scaled_steps,
)
from fewshot_blo.hypergrad.strategy import Strategy, inner_start
from fewshot_blo.kernel import SGD, InnerSteps, adapt
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Natural, NonNegative, Share


@checked
@dataclass(frozen=True)
class AmIGO(Strategy[DualState]):
    """T steps ``v ← v - α G_v``, then M steps ``q ← q - η (G_vv q - F_v)``, ``du = F_u - G_uv q``.

    Both go on from where the last outer step left them, so that few steps suffice once u moves
    slowly. Every step over v or q takes another batch of G, and ``G_uv q`` one more. From a cold
    start q begins at zero: M then bounds how exact it is.

    At outer step t, counted from 0, α and η are divided by ``(t + 1)^decay``.

    Attributes:
        inner: T inner steps.
        dual_steps: M, steps over q, each a product with ``G_vv``.
        dual_step_size: η, below 2 over the largest curvature of G.
        decay: exponent by which α and η fall, in [0, 1].

    Source: Arbel & Mairal (arXiv 2111.14580), with gradient descent for both solvers.
    """

    inner: InnerSteps = InnerSteps(10, SGD())
    dual_steps: Natural = 10
    dual_step_size: NonNegative = 0.1
    decay: Share = 0.0

    @property
    def follows(self) -> bool:
        """v and q take a few steps from where they were."""
        return True

    @property
    def step_kind(self) -> type[DualStep]:
        """With the dual."""
        return DualStep

    def init(self) -> DualState:
        """No dual, no step taken."""
        return DualState()

    def hypergradient(self, problem: Bilevel, state: DualState) -> DualStep:
        """Moves v, then q at the new v, and differentiates there."""
        factor = fallen(state, self.decay)
        v = adapt(
            problem.inner_loss,
            inner_start(problem, state),
            scaled_steps(self.inner, factor),
            outer=problem.outer,
        )
        v = {name: p.requires_grad_() for name, p in v.items()}
        f = problem.outer_loss(v)
        f_v, f_u = both_gradients(f, v, problem.outer)
        g, g_v = inner_graph(problem, v)
        product = sampled_products(problem, v, g_v, self.inner.most)
        q = dual_start(problem, state)
        for _ in range(self.dual_steps):
            q = dual_step(q, product(q), f_v, factor * self.dual_step_size)
        parts = [f_u, minus_cross(g_v, q, problem.outer)]
        gradient = add_gradients(problem.outer, parts, method="AmIGO", remedy=IN_NO_LOSS)
        v = {name: p.detach() for name, p in v.items()}
        return DualStep(gradient, v, f.detach(), g, v, q)

    def advance(self, state: DualState, step: DualStep) -> DualState:
        """Keeps v and q."""
        return DualState(step.next_inner, state.outer_step + 1, step.next_dual)
