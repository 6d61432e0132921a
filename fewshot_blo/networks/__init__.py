"""Networks and heads."""

from __future__ import annotations

from fewshot_blo.networks.conv4 import Conv4, Norm, classifier, make_norm
from fewshot_blo.networks.heads import CosineHead, Head, LinearHead

__all__ = ["Conv4", "CosineHead", "Head", "LinearHead", "Norm", "classifier", "make_norm"]
