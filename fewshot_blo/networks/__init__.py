"""Encoders of images, vectors and sequences, norm layers, and views of images."""

from __future__ import annotations

from fewshot_blo.networks.conv4 import Conv4
from fewshot_blo.networks.gru import GRU
from fewshot_blo.networks.mlp import MLP
from fewshot_blo.networks.norms import Norm, make_norm
from fewshot_blo.networks.parts import classifier
from fewshot_blo.networks.resnet12 import NARROW, WIDE, ResNet12
from fewshot_blo.networks.sine import SineNetwork
from fewshot_blo.networks.transformer import TransformerEncoder
from fewshot_blo.networks.wide_resnet import WideResNet

ENCODERS = (Conv4, ResNet12, WideResNet, MLP, SineNetwork, TransformerEncoder, GRU)
"""Encoders that the command line and recipes can name, besides pretrained networks."""

__all__ = [
    "ENCODERS",
    "GRU",
    "MLP",
    "NARROW",
    "WIDE",
    "Conv4",
    "Norm",
    "ResNet12",
    "SineNetwork",
    "TransformerEncoder",
    "WideResNet",
    "classifier",
    "make_norm",
]
