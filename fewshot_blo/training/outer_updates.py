"""Updates of the outer variables: the optimizer and an exponential moving average."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel.outer_variables import OuterVariables


def make_optimizer(
    outer: Mapping[str, Tensor],
    name: Literal["adam", "sgd"],
    *,
    momentum: float,
    weight_decay: float,
    rates: Mapping[str, float],
) -> torch.optim.Optimizer:
    """The outer optimizer, with one parameter group per learning rate factor (key ``factor``).

    Args:
        outer: outer variables by name.
        name: adam (AdamW), or sgd with Nesterov momentum.
        momentum: momentum of sgd.
        weight_decay: weight decay of either optimizer; decoupled for adam (AdamW).
        rates: learning rate factors by group of variables or by a part of one, such as
            ``encoder/blocks.3``; the longest match counts, and the default is 1.

    Raises:
        ConfigurationError: if a name in ``rates`` matches no variable, or a factor is negative.
    """
    places = OuterVariables.grouped(outer).places
    for part, factor in rates.items():
        if factor < 0 or not any(_is_in(place, part) for place in places.values()):
            known_groups = dict.fromkeys(place.split("/")[0] for place in places.values())
            raise ConfigurationError(
                f"rates has {factor} for '{part}': a factor must be at least 0, and its name one "
                f"of {', '.join(known_groups)}, or a part of one, as {next(iter(places.values()))}"
            )
    grouped: dict[float, list[Tensor]] = {}
    for known, leaf in outer.items():
        fitting = [part for part in rates if _is_in(places[known], part)]
        grouped.setdefault(rates[max(fitting, key=len)] if fitting else 1.0, []).append(leaf)
    groups: list[dict[str, Any]] = [{"params": p, "factor": f} for f, p in grouped.items()]
    if name == "adam":
        return torch.optim.AdamW(groups, weight_decay=weight_decay)
    return torch.optim.SGD(
        groups, momentum=momentum, weight_decay=weight_decay, nesterov=momentum > 0
    )


def _is_in(place: str, part: str) -> bool:
    return place == part or place.startswith((f"{part}/", f"{part}."))


@dataclass
class MovingAverage:
    """Exponential moving average of the outer variables, ``a ← d a + (1 - d) p`` after each step.

    The decay has the usual warm-up ``d = min(decay, (1 + t) / (10 + t))``, which quickly forgets
    the first steps. Source: Polyak & Juditsky (1992) on averaging.

    Attributes:
        decay: final value of d; 0 for no average.
        values: average by name; empty before the first step.
    """

    decay: float
    values: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def update(self, outer: Mapping[str, Tensor], step: int) -> None:
        """Updates the average with the variables after outer step ``step``, counted from 0."""
        if self.decay == 0:
            return
        if not self.values:
            self.values = {name: p.detach().clone() for name, p in outer.items()}
            return
        d = min(self.decay, (1 + step) / (10 + step))
        for name, p in outer.items():
            self.values[name].lerp_(p, 1 - d)

    @contextmanager
    def applied(self, outer: Mapping[str, Tensor]) -> Iterator[None]:
        """Sets the variables to their averages in the body, and restores them afterwards."""
        own = {name: p.detach().clone() for name, p in outer.items()} if self.values else {}
        try:
            for name, average in self.values.items():
                outer[name].data.copy_(average)
            yield
        finally:
            for name, p in own.items():
                outer[name].data.copy_(p)
