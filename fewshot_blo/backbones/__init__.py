"""Pretrained networks as encoders, and the choice of parameters that adapt to a task."""

from __future__ import annotations

from fewshot_blo.backbones.backbone import Backbone, Preprocessing
from fewshot_blo.backbones.load import load_backbone
from fewshot_blo.backbones.parameters import Adapts, choose_parameters
from fewshot_blo.backbones.split import Split, split_network
from fewshot_blo.networks.views import Views

__all__ = [
    "Adapts",
    "Backbone",
    "Preprocessing",
    "Split",
    "Views",
    "choose_parameters",
    "load_backbone",
    "split_network",
]
