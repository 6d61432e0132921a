"""Networks of torchvision: one classifier of every family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from fewshot_blo.tasks.reading.torchvision_import import torchvision_module
from zoo.network import WAY, Network, keep_first

_NARROW = "the hidden layers of its classifier are 32 wide"
_SMALL = "small widths and depths"
_SHORT = "of equal blocks in a row the first alone"


def networks() -> list[Network]:
    """The classifiers by name."""
    return [
        Network("torchvision", name, build, size, remark)
        for name, (build, size, remark) in _MEMBERS.items()
    ]


def _named(name: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        network: nn.Module = torchvision_module().models.get_model(
            name, weights=None, num_classes=WAY, **settings
        )
        return network

    return build


def _shallow(name: str, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: keep_first(_named(name, **settings)())


def _narrow(name: str, width: int) -> Callable[[], nn.Module]:
    """The network with narrow layers instead of its three linear layers."""

    def build() -> nn.Module:
        models = torchvision_module().models
        if name == "alexnet":
            network = models.alexnet(num_classes=WAY)
        else:
            layers = [8, "M", 16, "M", 16, "M", 24, "M", width, "M"]
            features = models.vgg.make_layers(layers, batch_norm=name.endswith("bn"))
            network = models.VGG(features, num_classes=WAY)
        head = [nn.Linear(width * network.avgpool.output_size[0] ** 2, 32), nn.ReLU()]
        network.classifier = nn.Sequential(*head, nn.Dropout(), nn.Linear(32, WAY))
        result: nn.Module = network
        return result

    return build


def _squeezenet() -> nn.Module:
    """The network with positive logits, which pass its last ReLU."""
    network = _named("squeezenet1_1")()
    nn.init.constant_(network.get_parameter("classifier.1.bias"), 1.0)
    return network


def _densenet() -> nn.Module:
    models = torchvision_module().models
    network: nn.Module = models.DenseNet(8, (2, 2, 2, 2), 16, num_classes=WAY)
    return network


def _convnext() -> nn.Module:
    models = torchvision_module().models.convnext
    blocks = [models.CNBlockConfig(16, 24, 1), models.CNBlockConfig(24, None, 1)]
    network: nn.Module = models.ConvNeXt(blocks, num_classes=WAY)
    return network


def _swin(version: int) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        models = torchvision_module().models.swin_transformer
        parts = {}
        if version == 2:
            parts = {
                "block": models.SwinTransformerBlockV2,
                "downsample_layer": models.PatchMergingV2,
            }
        sizes = {"patch_size": [4, 4], "window_size": [2, 2], "depths": [2, 2]}
        network: nn.Module = models.SwinTransformer(
            embed_dim=12, num_heads=[1, 2], num_classes=WAY, **sizes, **parts
        )
        return network

    return build


def _vit() -> nn.Module:
    network: nn.Module = torchvision_module().models.VisionTransformer(
        32, 8, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=32, num_classes=WAY
    )
    return network


def _maxvit() -> nn.Module:
    network: nn.Module = torchvision_module().models.MaxVit(
        (32, 32), 8, 2, [8, 12], [1, 1], 4, stochastic_depth_prob=0.0, num_classes=WAY
    )
    return network


def _video(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        video = torchvision_module().models.video.resnet
        conv, stem = {
            "r3d": (video.Conv3DSimple, video.BasicStem),
            "mc3": (video.Conv3DNoTemporal, video.BasicStem),
            "r2plus1d": (video.Conv2Plus1D, video.R2Plus1dStem),
        }[name]
        network: nn.Module = video.VideoResNet(
            video.BasicBlock, [conv] * 4, [1, 1, 1, 1], stem, num_classes=WAY
        )
        return network

    return build


_32, _64, _CLIP = (3, 32, 32), (3, 64, 64), (3, 4, 16, 16)
_MEMBERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "alexnet": (_narrow("alexnet", 256), _64, _NARROW),
    "convnext": (_convnext, _32, _SMALL),
    "densenet": (_densenet, _32, _SMALL),
    "efficientnet_b0": (_shallow("efficientnet_b0"), _64, _SHORT),
    "efficientnet_v2_s": (_shallow("efficientnet_v2_s"), _64, _SHORT),
    "googlenet": (_named("googlenet", aux_logits=False, init_weights=False), _32, ""),
    "inception_v3": (_named("inception_v3", aux_logits=False, init_weights=False), (3, 75, 75), ""),
    "maxvit": (_maxvit, _32, _SMALL),
    "mnasnet0_5": (_shallow("mnasnet0_5"), _64, _SHORT),
    "mobilenet_v2": (_shallow("mobilenet_v2", width_mult=0.35), _64, _SHORT),
    "mobilenet_v3_small": (_named("mobilenet_v3_small"), _32, ""),
    "mobilenet_v3_large": (_named("mobilenet_v3_large", reduced_tail=True), _32, ""),
    "regnet_x_400mf": (_shallow("regnet_x_400mf"), _64, _SHORT),
    "regnet_y_400mf": (_shallow("regnet_y_400mf"), _64, _SHORT),
    "resnet18": (_named("resnet18", width_per_group=64), _32, ""),
    "resnext50, wide": (_shallow("resnet50", groups=4, width_per_group=4), _64, _SHORT),
    "shufflenet_v2_x0_5": (_shallow("shufflenet_v2_x0_5"), _64, _SHORT),
    "squeezenet1_1": (_squeezenet, _32, "the last bias is near 1"),
    "swin": (_swin(1), _32, _SMALL),
    "swin_v2": (_swin(2), _32, _SMALL),
    "vgg11": (_narrow("vgg11", 32), _32, _NARROW),
    "vgg11_bn": (_narrow("vgg11_bn", 32), _32, _NARROW),
    "vit": (_vit, _32, _SMALL),
    "video: r3d": (_video("r3d"), _CLIP, "one block a stage"),
    "video: mc3": (_video("mc3"), _CLIP, "one block a stage"),
    "video: r2plus1d": (_video("r2plus1d"), _CLIP, "one block a stage"),
}
