"""stocBiO: a warm start of the inner parameters, and a Neumann series of sampled Hessians."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fewshot_blo.bilevel import Bilevel, OuterStep
from fewshot_blo.hypergrad.gradients import IN_NO_LOSS, add_gradients, both_gradients
from fewshot_blo.hypergrad.linear_solve import Neumann
from fewshot_blo.hypergrad.single_loop import (
    CountedState,
    fallen,
    inner_graph,
    minus_cross,
    sampled_products,
    scaled_steps,
)
from fewshot_blo.hypergrad.strategy import Strategy, inner_start
from fewshot_blo.kernel import SGD, InnerSteps, adapt
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, NonNegative, Share


@checked
@dataclass(frozen=True)
class StocBiO(Strategy[CountedState]):
    """T steps ``v ← v - α G_v``, ``q = η Σ_{j≤M} Π_{i≤j} (I - η G_vv) F_v``, ``du = F_u - G_uv q``.

    v goes on from where the last outer step left it; the series begins anew. Every inner step and
    every factor of the series takes another batch of G, and ``G_uv q`` one more. Where G has one
    batch it is ``Implicit`` with ``Neumann``.

    At outer step t, counted from 0, α is divided by ``(t + 1)^decay``; η is not, for a series of
    a given length is less exact with a smaller one.

    Attributes:
        inner: T inner steps.
        dual_steps: M, products with ``G_vv``.
        dual_step_size: η, below 2 over the largest curvature of G.
        decay: exponent by which α falls, in [0, 1].

    Source: Ji et al. (arXiv 2010.07962); all batches are of one size, as in the benchmark of
    Dagréou et al., where the paper's grow along the series.
    """

    inner: InnerSteps = InnerSteps(10, SGD())
    dual_steps: Counting = 10
    dual_step_size: NonNegative = 0.1
    decay: Share = 0.0

    @property
    def follows(self) -> bool:
        """v takes a few steps from where it was."""
        return True

    def init(self) -> CountedState:
        """No step taken."""
        return CountedState()

    def hypergradient(self, problem: Bilevel, state: CountedState) -> OuterStep:
        """Moves v, sums the series there and differentiates."""
        steps = scaled_steps(self.inner, fallen(state, self.decay))
        start = inner_start(problem, state)
        v = adapt(problem.inner_loss, start, steps, outer=problem.outer)
        v = {name: p.requires_grad_() for name, p in v.items()}
        f = problem.outer_loss(v)
        f_v, f_u = both_gradients(f, v, problem.outer)
        g, g_v = inner_graph(problem, v)
        series = Neumann(self.dual_steps, self.dual_step_size)
        q = series(sampled_products(problem, v, g_v, self.inner.most), f_v)
        parts = [f_u, minus_cross(g_v, q, problem.outer)]
        gradient = add_gradients(problem.outer, parts, method="StocBiO", remedy=IN_NO_LOSS)
        return OuterStep(gradient, {n: p.detach() for n, p in v.items()}, f.detach(), g)

    def advance(self, state: CountedState, step: OuterStep) -> CountedState:
        """Keeps v, and counts."""
        return replace(state, inner=step.inner, outer_step=state.outer_step + 1)
