"""Hypergradient strategies: one file a method, one protocol."""

from __future__ import annotations

from fewshot_blo.hypergrad.bome import BOME
from fewshot_blo.hypergrad.implicit import Implicit
from fewshot_blo.hypergrad.penalty import Penalty
from fewshot_blo.hypergrad.reptile import Reptile
from fewshot_blo.hypergrad.strategy import State, Strategy, outer_step
from fewshot_blo.hypergrad.unroll import Unroll
from fewshot_blo.hypergrad.value_function import ValueFunction

STRATEGIES = (Unroll, Implicit, Penalty, ValueFunction, BOME, Reptile)
"""All of them: what the command line, recipes and the contract suite know."""

__all__ = [
    "BOME",
    "STRATEGIES",
    "Implicit",
    "Penalty",
    "Reptile",
    "State",
    "Strategy",
    "Unroll",
    "ValueFunction",
    "outer_step",
]
