"""Encoders of the few-shot literature, norm layers, and views of images."""

from __future__ import annotations

from fewshot_blo.networks.conv4 import Conv4
from fewshot_blo.networks.norms import Norm, make_norm
from fewshot_blo.networks.parts import classifier
from fewshot_blo.networks.resnet12 import NARROW, WIDE, ResNet12
from fewshot_blo.networks.wide_resnet import WideResNet

ENCODERS = (Conv4, ResNet12, WideResNet)
"""Encoders that the command line and recipes can name, besides pretrained networks."""

__all__ = [
    "ENCODERS",
    "NARROW",
    "WIDE",
    "Conv4",
    "Norm",
    "ResNet12",
    "WideResNet",
    "classifier",
    "make_norm",
]
