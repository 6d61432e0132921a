"""Outer learning rates that fall with the steps taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fewshot_blo.errors import ConfigurationError

MakeOptimizer = Callable[[list[Tensor]], torch.optim.Optimizer]


def falling(optimizer: MakeOptimizer, decay: float) -> MakeOptimizer:
    """The optimizer with the learning rate of step t, counted from 0, divided by (t + 1)^decay.

    The number of steps is part of the optimizer's state, so that a resumed run goes on with it.

    Args:
        optimizer: makes the outer optimizer from the variables.
        decay: exponent, at least 0.

    Raises:
        ConfigurationError: if the rate would grow.
    """
    if decay < 0:
        raise ConfigurationError(f"decay is {decay}: the learning rate falls with it at least 0")

    def lower(stepped: torch.optim.Optimizer, *_: Any) -> None:
        for group in stepped.param_groups:
            first = group.setdefault("initial_lr", group["lr"])
            group["taken"] = group.get("taken", 0) + 1
            group["lr"] = first / (group["taken"] + 1) ** decay

    def make(variables: list[Tensor]) -> torch.optim.Optimizer:
        made = optimizer(variables)
        made.register_step_post_hook(lower)
        return made

    return make if decay else optimizer
