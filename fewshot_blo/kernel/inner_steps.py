"""How an inner problem is solved: steps of an update rule, a number of them or to a tolerance."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from typing_extensions import Self

from fewshot_blo.kernel.lbfgs import LBFGS
from fewshot_blo.kernel.rules import AdGD, UpdateRule
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Natural, Positive

MOST_STEPS = 2000
"""Largest number of inner steps where only a tolerance ends them."""

_TOLERANCE = {torch.float64: 1e-11}
_FLOAT32_TOLERANCE = 2e-6


@checked
@dataclass(frozen=True)
class InnerSteps:
    """Steps of an update rule on the loss of an inner problem.

    Attributes:
        steps: largest number of inner steps, 0 to leave the inner problem where it starts; where
            unset, steps are taken to the tolerance.
        rule: update rule of the inner parameters; where unset, L-BFGS, and gradient descent with
            step sizes from measured curvature (AdGD) with projections and derivatives.
        tolerance: length of a step, relative to 1 plus the norm of the inner parameters, at which
            a task is solved and stops; where unset, 1e-11 in float64 and 2e-6 in float32 if the
            number of steps is unset too, and otherwise all steps are taken.

    Raises:
        ConfigurationError: if the number or the tolerance is negative.
    """

    steps: Natural | None = None
    rule: UpdateRule | None = None
    tolerance: Positive | None = None

    @property
    def left_open(self) -> bool:
        """Whether number and size of the steps are chosen."""
        return self.steps is None and self.rule is None

    @property
    def most(self) -> int:
        """Largest number of steps."""
        return MOST_STEPS if self.steps is None else self.steps

    def update_rule(self, *, plain: bool) -> UpdateRule:
        """The rule, chosen where it is unset.

        Args:
            plain: whether steps have neither derivatives nor a projection.
        """
        if self.rule is not None:
            return self.rule
        return LBFGS() if plain else AdGD()

    def ends_at(self, dtype: torch.dtype) -> float | None:
        """The relative length of a step at which a task stops; None where all steps are taken."""
        if self.tolerance is None and self.steps is None:
            return _TOLERANCE.get(dtype, _FLOAT32_TOLERANCE)
        return self.tolerance

    def filled(self, steps: int, rule: UpdateRule) -> Self:
        """The same with a number of steps and a rule where they are unset."""
        return replace(
            self,
            steps=steps if self.steps is None and self.tolerance is None else self.steps,
            rule=rule if self.rule is None else self.rule,
        )
