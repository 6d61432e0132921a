"""SOBA: inner parameters, dual and outer variables move together, one stochastic step each."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fewshot_blo.bilevel import Bilevel
from fewshot_blo.hypergrad.gradients import IN_NO_LOSS, add_gradients
from fewshot_blo.hypergrad.single_loop import DualState, DualStep, SingleStep, directions
from fewshot_blo.records.checked import checked


@checked
@dataclass(frozen=True)
class SOBA(SingleStep[DualState]):
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

    @property
    def step_kind(self) -> type[DualStep]:
        """With the dual, and v after the step."""
        return DualStep

    def init(self) -> DualState:
        """No dual, no step taken."""
        return DualState()

    def hypergradient(self, problem: Bilevel, state: DualState) -> DualStep:
        """The three directions at v and q of the state."""
        at = directions(problem, state)
        gradient = add_gradients(
            problem.outer, [at.f_u, at.minus_cross], method="SOBA", remedy=IN_NO_LOSS
        )
        with torch.no_grad():
            v = self.moved(problem, state, at.v, at.g_v)
            q = self.moved_dual(state, at.q, at.product, at.f_v)
        return DualStep(gradient, at.v, at.f, at.g, v, q)

    def advance(self, state: DualState, step: DualStep) -> DualState:
        """Moves v and q."""
        return DualState(step.next_inner, state.outer_step + 1, step.next_dual)
