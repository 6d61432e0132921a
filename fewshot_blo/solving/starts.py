"""Where inner problems start: cold, warm or in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from fewshot_blo.bilevel import TaskParams
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Natural, Share


@checked
@dataclass(frozen=True)
class Partial:
    """Between cold and warm: the inner problem starts near where the last one ended.

    Attributes:
        every: outer steps between cold starts; 0 for none.
        keep: weight of the last inner parameters in the start; the rest is the problem's own start.

    Raises:
        ConfigurationError: if a setting is outside its range.
    """

    every: Natural = 0
    keep: Share = 1.0


Start = Literal["cold", "warm"] | Partial
"""Where an inner problem starts: anew, where the last one ended, or in between.

Source: Vicol et al., "On Implicit Bias in Overparameterized Bilevel Optimization" (arXiv
2212.14032), algorithms 1 and 2.
"""


def starts_cold(start: Start | None) -> bool:
    """Whether every inner problem starts anew, by name or as nothing of the last one is kept."""
    if start is None or isinstance(start, str):
        return start == "cold"
    return start.every == 1 or start.keep == 0


def starting_point(start: Start, last: TaskParams, init: TaskParams, step: int) -> TaskParams:
    """Where the inner problem of an outer step starts; empty for its own start.

    Args:
        start: how inner problems start.
        last: where the last inner problem ended, ``[1, ...]``; empty for nowhere.
        init: the problem's own start.
        step: the outer step, from 0.
    """
    if start == "cold" or not last:
        return {}
    if start == "warm":
        return last
    if start.every and step % start.every == 0:
        return {}
    return {name: torch.lerp(init[name], p, start.keep) for name, p in last.items()}
