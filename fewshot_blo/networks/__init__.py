"""Networks and heads."""

from __future__ import annotations

from fewshot_blo.networks.conv4 import Conv4, classifier
from fewshot_blo.networks.full_context import FullContextHead
from fewshot_blo.networks.heads import CosineHead, Head, LinearHead
from fewshot_blo.networks.label_propagation import LabelPropagationHead
from fewshot_blo.networks.matching import MatchingHead
from fewshot_blo.networks.max_margin import MaxMarginHead
from fewshot_blo.networks.norms import Norm, make_norm
from fewshot_blo.networks.relation import RelationHead
from fewshot_blo.networks.resnet12 import NARROW, WIDE, ResNet12
from fewshot_blo.networks.ridge import RidgeHead
from fewshot_blo.networks.tail import TailHead
from fewshot_blo.networks.wide_resnet import WideResNet

__all__ = [
    "NARROW",
    "WIDE",
    "Conv4",
    "CosineHead",
    "FullContextHead",
    "Head",
    "LabelPropagationHead",
    "LinearHead",
    "MatchingHead",
    "MaxMarginHead",
    "Norm",
    "RelationHead",
    "ResNet12",
    "RidgeHead",
    "TailHead",
    "WideResNet",
    "classifier",
    "make_norm",
]
