"""Classification heads for the features of T tasks at once, one file per head."""

from __future__ import annotations

from fewshot_blo.heads.balanced import BalancedHead
from fewshot_blo.heads.full_context import FullContextHead
from fewshot_blo.heads.head import Head
from fewshot_blo.heads.label_propagation import LabelPropagationHead
from fewshot_blo.heads.linear import CosineHead, LinearHead
from fewshot_blo.heads.linear_regression import LinearRegressionHead
from fewshot_blo.heads.matching import MatchingHead
from fewshot_blo.heads.max_margin import MaxMarginHead
from fewshot_blo.heads.relation import RelationHead
from fewshot_blo.heads.ridge import RidgeHead
from fewshot_blo.heads.tail import TailHead

HEADS = (
    LinearHead,
    CosineHead,
    RidgeHead,
    LinearRegressionHead,
    MaxMarginHead,
    MatchingHead,
    FullContextHead,
    RelationHead,
    LabelPropagationHead,
)
"""Heads that recipes can name; a ``TailHead`` is split from a network instead, and a
``BalancedHead`` is for classes of unequal size."""

__all__ = [
    "HEADS",
    "BalancedHead",
    "CosineHead",
    "FullContextHead",
    "Head",
    "LabelPropagationHead",
    "LinearHead",
    "LinearRegressionHead",
    "MatchingHead",
    "MaxMarginHead",
    "RelationHead",
    "RidgeHead",
    "TailHead",
]
