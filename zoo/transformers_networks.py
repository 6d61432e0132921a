"""Networks of Hugging Face transformers: image classifiers in small configurations."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

from torch import Tensor, nn

from fewshot_blo.tasks.reading.torchvision_import import torchvision_module
from zoo.network import WAY, Network

_VIT: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
_TOWER = {"vision_config": _VIT}
_SWIN: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 4,
    "window_size": 2,
    "embed_dim": 12,
    "depths": [1, 1],
    "num_heads": [1, 2],
}
_STAGES: dict[str, Any] = {"hidden_sizes": [12, 16, 20, 24], "depths": [1, 1, 1, 1]}

# Prefix of the configuration class and the network class, settings, image size in pixels.
_MEMBERS: dict[str, tuple[dict[str, Any], int]] = {
    "Beit": ({**_VIT, "use_mask_token": False}, 32),
    "Bit": (
        {"embedding_size": 8, "num_groups": 2, **_STAGES, "hidden_sizes": [16, 16, 32, 32]},
        32,
    ),
    "CLIP": (_TOWER, 32),
    "ConvNext": (_STAGES, 32),
    "ConvNextV2": (_STAGES, 32),
    "Cvt": ({"embed_dim": [8, 12, 16], "num_heads": [1, 1, 2], "depth": [2, 2, 3]}, 32),
    "Data2VecVision": ({**_VIT, "use_mask_token": False}, 32),
    "DeiT": (_VIT, 32),
    "Dinov2": ({**_VIT, "mlp_ratio": 2}, 32),
    "Dinov2WithRegisters": ({**_VIT, "mlp_ratio": 2}, 32),
    "DonutSwin": (_SWIN, 32),
    "EfficientNet": (
        {
            "image_size": 32,
            "width_coefficient": 0.25,
            "depth_coefficient": 0.3,
            "hidden_dim": 320,
            "initializer_range": 0.3,
        },
        32,
    ),
    "FocalNet": ({"image_size": 32, "embed_dim": 12, "depths": [1, 1, 1, 1]}, 32),
    "HGNetV2": (
        {
            "embedding_size": 8,
            "stem_channels": [3, 8, 8],
            "hidden_sizes": [16, 16, 24, 24],
            "stage_in_channels": [8, 16, 16, 24],
            "stage_mid_channels": [8, 8, 8, 8],
            "stage_out_channels": [16, 16, 24, 24],
            "stage_num_blocks": [1, 1, 1, 1],
        },
        64,
    ),
    "Hiera": (
        {
            "image_size": [64, 64],
            "embed_dim": 12,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 2, 2, 4],
        },
        64,
    ),
    "IJepa": (_VIT, 32),
    "Levit": (
        {
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "num_attention_heads": [1, 2, 2],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
        64,
    ),
    "MetaClip2": (_TOWER, 32),
    "MobileNetV1": ({"image_size": 32, "depth_multiplier": 0.25}, 32),
    "MobileNetV2": ({"image_size": 32, "depth_multiplier": 0.25}, 32),
    "MobileViT": (
        {
            "image_size": 32,
            "initializer_range": 0.2,
            "hidden_sizes": [16, 16, 24],
            "neck_hidden_sizes": [8, 8, 12, 12, 16, 16, 32],
        },
        32,
    ),
    "MobileViTV2": ({"image_size": 64, "initializer_range": 0.2, "width_multiplier": 0.25}, 64),
    "PoolFormer": (_STAGES, 32),
    "PPLCNet": ({"scale": 0.25}, 32),
    "Pvt": (
        {
            "image_size": 32,
            "hidden_sizes": [8, 8, 16, 16],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 1, 2, 2],
        },
        32,
    ),
    "PvtV2": (
        {
            "image_size": 32,
            "hidden_sizes": [8, 8, 16, 16],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 1, 2, 2],
        },
        32,
    ),
    "RegNet": ({"embedding_size": 8, "groups_width": 4, **_STAGES}, 32),
    "ResNet": ({"embedding_size": 8, **_STAGES}, 32),
    "Segformer": (
        {
            "hidden_sizes": [8, 8, 16, 16],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 1, 2, 2],
        },
        32,
    ),
    "Siglip": (_TOWER, 32),
    "SwiftFormer": ({"embed_dims": [8, 16, 16, 24], "depths": [1, 1, 1, 1]}, 32),
    "Swin": (_SWIN, 32),
    "Swinv2": (_SWIN, 32),
    "TextNet": (
        {
            "image_size": [32, 32],
            "stem_out_channels": 8,
            "hidden_sizes": [8, 8, 16, 16, 16],
            "conv_layer_kernel_sizes": [[[3, 3]], [[3, 1]], [[1, 3]], [[3, 3]]],
            "conv_layer_strides": [[2], [2], [1], [1]],
        },
        32,
    ),
    "ViT": (_VIT, 32),
    "ViTMSN": (_VIT, 32),
}


class _Logits(nn.Module):
    """Returns only the logits of a classifier that returns several outputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images; PP-LCNet returns them as its last hidden state."""
        outputs = self.network(pixel_values=x)
        logits: Tensor = outputs.logits if "logits" in outputs else outputs.last_hidden_state
        return logits


def networks() -> list[Network]:
    """The classifiers by the prefix of their class."""
    return [
        Network("transformers", name, partial(_build, name, settings), (3, size, size))
        for name, (settings, size) in _MEMBERS.items()
    ]


def _build(name: str, settings: dict[str, Any]) -> nn.Module:
    torchvision_module()  # transformers imports torchvision.
    transformers = importlib.import_module("transformers")
    config = getattr(transformers, f"{name}Config")(**settings, num_labels=WAY)
    return _Logits(getattr(transformers, f"{name}ForImageClassification")(config))
