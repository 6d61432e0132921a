"""SOBA: inner parameters, dual and outer variables move together, one stochastic step each."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fewshot_blo.bilevel import Bilevel, task_dot
from fewshot_blo.hypergrad.single_loop import (
    DualState,
    DualStep,
    check_decay,
    check_single,
    dual_start,
    dual_step,
    fallen,
    inner_graph,
    scaled_steps,
)
from fewshot_blo.hypergrad.strategy import (
    IN_NO_LOSS,
    Strategy,
    add_gradients,
    both_gradients,
    check_not_negative,
    inner_start,
)
from fewshot_blo.kernel import SGD, InnerSteps


@dataclass(frozen=True)
class SOBA(Strategy[DualState]):
    """``v ← v - α G_v``, ``q ← q - η (G_vv q - F_v)``, ``du = F_u - G_uv q``, all at the old v, q.

    One batch of G and one of F give all three directions: a gradient of each loss, and one pass
    for both products with second derivatives. Nothing is solved within an outer step, so it needs
    a warm start: from zero q, du is F_u alone. Where nothing moves, v is the minimiser of G, q
    solves its system and du is zero.

    At outer step t, counted from 0, α and η are divided by ``(t + 1)^decay``. The outer learning
    rate is the optimizer's: let it fall likewise.

    Attributes:
        inner: one step of an update rule over v; of SGD in the paper.
        dual_step_size: η.
        decay: exponent by which α and η fall, in [0, 1]; 1/2 in the paper's experiments.

    Source: Dagréou et al. (arXiv 2201.13409), and the authors' benchmark for the batches, which
    all three directions share.
    """

    inner: InnerSteps = InnerSteps(1, SGD())
    dual_step_size: float = 0.1
    decay: float = 0.0

    def __post_init__(self) -> None:
        check_single("SOBA", self.inner)
        check_not_negative("SOBA", dual_step_size=self.dual_step_size)
        check_decay("SOBA", self.decay)

    @property
    def needs_warm_start(self) -> bool:
        """One step from anew is no solution of anything."""
        return True

    @property
    def step_kind(self) -> type[DualStep]:
        """With the dual, and v after the step."""
        return DualStep

    def init(self) -> DualState:
        """No dual, no step taken."""
        return DualState()

    def hypergradient(self, problem: Bilevel, state: DualState) -> DualStep:
        """The three directions at v and q of the state."""
        v = {n: p.detach().requires_grad_() for n, p in inner_start(problem, state).items()}
        q = dual_start(problem, state)
        f = problem.outer_loss(v)
        f_v, f_u = both_gradients(f, v, problem.outer)
        g, g_v = inner_graph(problem, v)
        # One pass for both products; its mean over tasks is negated for du.
        product, cross = both_gradients(task_dot(g_v, q), v, problem.outer)
        minus = {name: None if x is None else -x for name, x in cross.items()}
        gradient = add_gradients(problem.outer, [f_u, minus], method="SOBA", remedy=IN_NO_LOSS)
        factor = fallen(state, self.decay)
        with torch.no_grad():
            rule = scaled_steps(self.inner, factor).update_rule
            v, g_v = ({n: p.detach() for n, p in x.items()} for x in (v, g_v))
            moved, _ = rule.update(g_v, rule.init(v, problem.outer), v, 0)
            q = dual_step(q, product, f_v, factor * self.dual_step_size)
        return DualStep(gradient, v, f.detach(), g, moved, q)

    def advance(self, state: DualState, step: DualStep) -> DualState:
        """Moves v and q."""
        return DualState(step.next_inner, state.outer_step + 1, step.next_dual)
