"""How outer variables change: the optimizer, and a moving average of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from fewshot_blo.bilevel import OuterVariables
from fewshot_blo.errors import ConfigurationError


def make_optimizer(
    outer: Mapping[str, Tensor],
    name: Literal["adam", "sgd"],
    *,
    momentum: float,
    weight_decay: float,
    rates: Mapping[str, float],
) -> torch.optim.Optimizer:
    """The outer optimizer, with a group for each factor of the learning rate, ``factor``.

    Args:
        outer: the variables by name.
        name: adam (AdamW), or sgd with Nesterov's momentum.
        momentum: of sgd.
        weight_decay: of both.
        rates: factors by group of variables or, as ``encoder/blocks.3``, by a part of one; the
            longest that fits. Variables without one have 1.

    Raises:
        ConfigurationError: if a name in ``rates`` fits no variable, or a factor is negative.
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
    """``a ← d a + (1 - d) p`` after each outer step, where d grows to its last value.

    Source: Polyak & Juditsky (1992) on averaging; d = min(decay, (1 + t) / (10 + t)), so that the
    first steps are soon forgotten, is the usual warm-up.

    Attributes:
        decay: the last d; 0 for no average.
        values: the average by name; empty before the first step.
    """

    decay: float
    values: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def update(self, outer: Mapping[str, Tensor], step: int) -> None:
        """Takes in the variables after outer step ``step``, counted from 0."""
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
        """The variables have the average's values inside, and their own again afterwards."""
        own = {name: p.detach().clone() for name, p in outer.items()} if self.values else {}
        try:
            for name, average in self.values.items():
                outer[name].data.copy_(average)
            yield
        finally:
            for name, p in own.items():
                outer[name].data.copy_(p)
