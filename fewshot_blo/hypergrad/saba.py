"""SABA: SOBA with a remembered gradient of every block of data, which takes the noise away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, Block, TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad.gradients import IN_NO_LOSS, add_gradients
from fewshot_blo.hypergrad.single_loop import DualState, DualStep, SingleStep, directions
from fewshot_blo.records.checked import checked


@dataclass(frozen=True, repr=False)
class SABAState(DualState):
    """The dual, and what is remembered of every block; both mappings are empty at the start.

    Attributes:
        blocks: the last value of each quantity on each block that was seen, ``[1, ...]``, as
            ``G_v/name/block``. A tensor for each: a step replaces few and copies none.
        means: over all blocks, ``[1, ...]``, as ``G_v/name``; one that was not seen counts as zero.
    """

    blocks: TaskParams = field(default_factory=dict)
    means: TaskParams = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class SABAStep(DualStep):
    """A step with what is remembered after it.

    Attributes:
        blocks, means: as of ``SABAState``.
    """

    blocks: TaskParams
    means: TaskParams


@checked
@dataclass(frozen=True)
class SABA(SingleStep[SABAState]):
    """SOBA's directions with each sampled g replaced by ``g - g_b + mean_b g_b``.

    ``g_b`` is the value of that quantity (``G_v``, ``G_vv q``, ``G_uv q``, ``F_v``, ``F_u``) when
    block b of the data was seen last, and zero before. The differences vanish where v, q and u
    settle, so that constant step sizes converge. Memory is that of u and v times the number of
    blocks. Where a loss is of all data at once there is nothing to remember, and it is SOBA.

    Attributes:
        inner: one step of an update rule over v; of SGD in the paper.
        dual_step_size: η, of q.
        decay: exponent by which step sizes fall, in [0, 1]; 0 in the paper's experiments.

    Source: Dagréou et al. (arXiv 2201.13409); memories start at zero as in the authors' benchmark.
    """

    @property
    def step_kind(self) -> type[SABAStep]:
        """With the memories."""
        return SABAStep

    def init(self) -> SABAState:
        """Nothing remembered, no step taken."""
        return SABAState()

    def hypergradient(self, problem: Bilevel, state: SABAState) -> SABAStep:
        """The three directions at v and q of the state, and what is remembered after.

        Raises:
            ConfigurationError: if it is not known which block of data a loss is of.
        """
        memory = _Memory(problem, state)
        at = directions(problem, state)
        with torch.no_grad():
            parts = [
                memory.outer("F_u", at.f_u, "outer"),
                memory.outer("-G_uv q", at.minus_cross, "inner"),
            ]
            v = self.moved(problem, state, at.v, memory.inner("G_v", at.g_v))
            product, f_v = memory.inner("G_vv q", at.product), memory.inner("F_v", at.f_v, "outer")
            q = self.moved_dual(state, at.q, product, f_v)
        gradient = add_gradients(problem.outer, parts, method="SABA", remedy=IN_NO_LOSS)
        return SABAStep(gradient, at.v, at.f, at.g, v, q, memory.blocks, memory.means)

    def advance(self, state: SABAState, step: SABAStep) -> SABAState:
        """Moves v and q, and remembers."""
        return SABAState(
            step.next_inner, state.outer_step + 1, step.next_dual, step.blocks, step.means
        )


class _Memory:
    """What is remembered, while a step replaces the values of the blocks that it sees."""

    def __init__(self, problem: Bilevel, state: SABAState) -> None:
        self.blocks, self.means = dict(state.blocks), dict(state.means)
        inner, outer = problem.inner_block, problem.outer_block
        if inner is None or outer is None:
            level = "inner" if inner is None else "outer"
            raise ConfigurationError(
                f"SABA remembers a gradient of every block of data, and the batches of the {level} "
                f"loss are not numbered: give the problem {level}_blocks in place of "
                f"{level}_batches, or use SOBA"
            )
        self._seen: dict[str, Block] = {"inner": inner, "outer": outer}
        if problem.tasks > 1 and any(block.total > 1 for block in self._seen.values()):
            raise ConfigurationError(
                f"SABA remembers gradients of blocks for one inner problem, and there are "
                f"{problem.tasks}: use SOBA"
            )

    def inner(self, quantity: str, values: TaskParams, level: str = "inner") -> TaskParams:
        """The variance-reduced value of a gradient over v, ``[T, ...]``."""
        return {n: self._reduced(f"{quantity}/{n}", x, level) for n, x in values.items()}

    def outer(
        self, quantity: str, values: Mapping[str, Tensor | None], level: str
    ) -> dict[str, Tensor | None]:
        """The same of a gradient over u, which has no axis of tasks."""
        return {
            n: None if x is None else self._reduced(f"{quantity}/{n}", x[None], level)[0]
            for n, x in values.items()
        }

    def _reduced(self, name: str, value: Tensor, level: str) -> Tensor:
        block = self._seen[level]
        if block.total == 1:
            return value
        own, mean = f"{name}/{block.number}", self.means.get(name)
        difference = value - self.blocks[own] if own in self.blocks else value
        estimate = difference if mean is None else difference + mean
        change = difference / block.total
        self.blocks[own], self.means[name] = value, change if mean is None else mean + change
        return estimate
