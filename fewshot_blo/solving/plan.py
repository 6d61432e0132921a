"""How far a run of the driver goes, and what it is given to call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params
from fewshot_blo.solving.starts import Start

Validate = Callable[[Params, Mapping[str, Tensor]], float]
"""``(u, v)`` to a held-out loss; lower is better."""

MakeOptimizer = Callable[[list[Tensor]], torch.optim.Optimizer]

Observe = Callable[[Params, Mapping[str, Tensor]], Mapping[str, float]]
"""``(u, v)`` to figures by name."""


@dataclass(frozen=True)
class Plan:
    """How far a run goes, and what is measured on the way; arguments as of ``solve``."""

    steps: int
    start: Start
    validate: Validate | None
    observe: Observe | None
    patience: int
    every: int
    tolerance: float | None = None
    seconds: float | None = None

    def plain(self) -> dict[str, Any]:
        """The settings as plain data, for loggers."""
        return {
            "steps": self.steps,
            "start": str(self.start),
            "patience": self.patience,
            "every": self.every,
            "tolerance": self.tolerance,
            "seconds": self.seconds,
        }
