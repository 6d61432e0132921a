"""Hypergradient strategies: one file a method, one protocol."""

from __future__ import annotations

from fewshot_blo.hypergrad.implicit import Implicit
from fewshot_blo.hypergrad.penalty import Penalty
from fewshot_blo.hypergrad.strategy import State, Strategy, outer_step
from fewshot_blo.hypergrad.unroll import Unroll

__all__ = ["Implicit", "Penalty", "State", "Strategy", "Unroll", "outer_step"]
