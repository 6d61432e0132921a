"""Hypergradient strategies: one file a method, one protocol."""

from __future__ import annotations

from fewshot_blo.hypergrad.amigo import AmIGO
from fewshot_blo.hypergrad.bome import BOME
from fewshot_blo.hypergrad.finite_difference import FiniteDifference
from fewshot_blo.hypergrad.implicit import Implicit
from fewshot_blo.hypergrad.moreau_envelope import MoreauEnvelope
from fewshot_blo.hypergrad.penalty import Penalty
from fewshot_blo.hypergrad.reptile import Reptile
from fewshot_blo.hypergrad.saba import SABA
from fewshot_blo.hypergrad.soba import SOBA
from fewshot_blo.hypergrad.stocbio import StocBiO
from fewshot_blo.hypergrad.strategy import State, Strategy, outer_step
from fewshot_blo.hypergrad.unroll import Unroll
from fewshot_blo.hypergrad.value_function import ValueFunction

STRATEGIES = (
    Unroll,
    Implicit,
    FiniteDifference,
    Penalty,
    ValueFunction,
    BOME,
    MoreauEnvelope,
    SOBA,
    SABA,
    AmIGO,
    StocBiO,
    Reptile,
)
"""All of them: what the command line, recipes and the contract suite know."""

__all__ = [
    "BOME",
    "SABA",
    "SOBA",
    "STRATEGIES",
    "AmIGO",
    "FiniteDifference",
    "Implicit",
    "MoreauEnvelope",
    "Penalty",
    "Reptile",
    "State",
    "StocBiO",
    "Strategy",
    "Unroll",
    "ValueFunction",
    "outer_step",
]
