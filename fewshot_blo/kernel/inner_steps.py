"""How an inner problem is solved: number of inner steps and update rule."""

from __future__ import annotations

from dataclasses import dataclass

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel.rules import SGD, UpdateRule


@dataclass(frozen=True)
class InnerSteps:
    """Steps of an update rule on the loss of an inner problem.

    Attributes:
        steps: number of inner steps; 0 keeps the initial inner parameters.
        rule: update rule of the inner parameters.

    Raises:
        ConfigurationError: if the number of steps is negative.
    """

    steps: int = 5
    rule: UpdateRule = SGD()

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ConfigurationError(f"steps is {self.steps}: it must be at least 0")
