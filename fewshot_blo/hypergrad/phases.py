"""Strategies that take turns in the course of training."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad.strategy import Strategy, derivatives_of
from fewshot_blo.kernel import Order


@dataclass(frozen=True)
class Phases:
    """Which strategy computes the hypergradient of an outer step; each takes over the state.

    So a run can begin with first-order derivatives, which are cheaper and steadier, and go on
    with second-order ones.

    Attributes:
        phases: from which outer step on, and which strategy; the first begins at step 0.

    Raises:
        ConfigurationError: if there is none, or they are not in order.

    Source: the annealed order of derivatives of Antoniou et al., "MAML++" (arXiv 1810.09502).
    """

    phases: tuple[tuple[int, Strategy], ...]

    def __post_init__(self) -> None:
        starts = [start for start, _ in self.phases]
        if starts[:1] != [0] or any(a >= b for a, b in itertools.pairwise(starts)):
            raise ConfigurationError(
                f"phases begin at outer steps {starts}: the first must begin at 0, each later than "
                "the one before"
            )

    @property
    def derivatives(self) -> Order:
        """Of all phases."""
        orders = {derivatives_of(strategy) for _, strategy in self.phases}
        return "second" if "second" in orders else "first"

    def at(self, step: int) -> Strategy:
        """The strategy of outer step ``step``, counted from 0."""
        return next(strategy for start, strategy in reversed(self.phases) if start <= step)
