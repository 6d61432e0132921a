"""Networks and heads."""

from __future__ import annotations

from fewshot_blo.networks.conv4 import Conv4, classifier
from fewshot_blo.networks.heads import CosineHead, Head, LinearHead
from fewshot_blo.networks.norms import Norm, make_norm
from fewshot_blo.networks.resnet12 import NARROW, WIDE, ResNet12

__all__ = [
    "NARROW",
    "WIDE",
    "Conv4",
    "CosineHead",
    "Head",
    "LinearHead",
    "Norm",
    "ResNet12",
    "classifier",
    "make_norm",
]
