"""Classification heads for the features of T tasks at once, one file per head."""

from __future__ import annotations

from fewshot_blo.heads.alpha_tim import AlphaTIMHead
from fewshot_blo.heads.anchored import AnchoredLinearHead
from fewshot_blo.heads.anchored_ridge import AnchoredRidgeHead
from fewshot_blo.heads.balanced import BalancedHead
from fewshot_blo.heads.bd_cspn import BDCSPNHead
from fewshot_blo.heads.full_context import FullContextHead
from fewshot_blo.heads.head import Head
from fewshot_blo.heads.label_propagation import LabelPropagationHead
from fewshot_blo.heads.laplacian_shot import LaplacianShotHead
from fewshot_blo.heads.linear import CosineHead, LinearHead
from fewshot_blo.heads.linear_regression import LinearRegressionHead
from fewshot_blo.heads.matching import MatchingHead
from fewshot_blo.heads.max_margin import MaxMarginHead
from fewshot_blo.heads.pt_map import PTMAPHead
from fewshot_blo.heads.relation import RelationHead
from fewshot_blo.heads.ridge import RidgeHead
from fewshot_blo.heads.ridge_regression import RidgeRegressionHead
from fewshot_blo.heads.soft_k_means import SoftKMeansHead
from fewshot_blo.heads.tail import TailHead
from fewshot_blo.heads.tim import TIMHead

HEADS = (
    LinearHead,
    CosineHead,
    RidgeHead,
    LinearRegressionHead,
    RidgeRegressionHead,
    MaxMarginHead,
    MatchingHead,
    FullContextHead,
    RelationHead,
    LabelPropagationHead,
    SoftKMeansHead,
    PTMAPHead,
    AlphaTIMHead,
    TIMHead,
    BDCSPNHead,
    LaplacianShotHead,
)
"""Heads that recipes can name; a ``TailHead`` is split from a network instead, a ``BalancedHead``
is for classes of unequal size, and anchored heads are given weights of each class."""

__all__ = [
    "HEADS",
    "AlphaTIMHead",
    "AnchoredLinearHead",
    "AnchoredRidgeHead",
    "BDCSPNHead",
    "BalancedHead",
    "CosineHead",
    "FullContextHead",
    "Head",
    "LabelPropagationHead",
    "LaplacianShotHead",
    "LinearHead",
    "LinearRegressionHead",
    "MatchingHead",
    "MaxMarginHead",
    "PTMAPHead",
    "RelationHead",
    "RidgeHead",
    "RidgeRegressionHead",
    "SoftKMeansHead",
    "TIMHead",
    "TailHead",
]
