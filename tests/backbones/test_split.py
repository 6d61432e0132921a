"""Halves of networks against the whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot_blo.backbones import (
    Backbone,
    Preprocessing,
    Split,
    Views,
    load_backbone,
    split_network,
)
from fewshot_blo.backbones.layers import prepared
from fewshot_blo.backbones.low_rank import with_low_rank
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.tasks.reading.torchvision_import import torchvision_module

IMAGE = torch.Size((3, 32, 32))


class Branches(nn.Module):
    """Skips, in-place writes, sizes and an unused layer, as networks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.third = nn.Linear(4, 5)
        self.unused = nn.Linear(2, 2)
        self.relu = nn.ReLU(inplace=True)
        self.token = nn.Parameter(torch.randn(1, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        y = F.relu(self.second(x), inplace=True)
        y += x
        y = y.mul_(2)
        tokens = y.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1)
        output: Tensor = self.third(tokens).reshape(x.size(0), -1, 5).mean(1)
        return output


class Untraceable(nn.Module):
    """Its forward pass depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x.flatten(1))
        output: Tensor = self.second(hidden if hidden.isfinite().all() else hidden * 0)
        return output


def halves_agree(network: nn.Module, split: Split, image: torch.Size = IMAGE) -> None:
    torch.manual_seed(1)
    images = torch.rand(5, *image)
    features = split.trunk(images)
    kept = features.clone()
    with torch.no_grad():
        torch.testing.assert_close(split.tail(features), network(images), rtol=1e-4, atol=1e-5)
    assert torch.equal(features, kept)
    tail = dict(split.tail.named_parameters())
    assert set(split.adapted) <= set(tail)
    gradients = torch.autograd.grad(
        split.tail(features).square().sum(), [tail[name] for name in split.adapted]
    )
    assert all(gradient.any() for gradient in gradients)


@pytest.mark.parametrize(
    ("adapted", "in_tail"),
    [
        (["third.bias"], {"third.weight", "third.bias"}),
        (["second.weight"], {"second.weight", "second.bias", "third.weight", "third.bias"}),
        (["token"], {"token", "third.weight", "third.bias"}),
        (["first.bias"], {"first.weight", "first.bias", "second.weight", "token"}),
    ],
)
def test_the_tail_begins_where_parameters_adapt(adapted: list[str], in_tail: set[str]) -> None:
    torch.manual_seed(0)
    network = Branches()
    split = split_network(network, adapted, IMAGE)
    assert not split.whole
    names = {name for name, _ in split.tail.named_parameters()}
    assert in_tail <= names
    assert "unused.weight" not in names
    halves_agree(network, split)
    assert network.relu.inplace


def test_a_network_that_cannot_be_traced_stays_whole() -> None:
    network, image = Untraceable(), torch.Size((3, 2, 2))
    split = split_network(network, ["second.bias"], image)
    assert split.whole
    assert split.adapted == ("network.second.bias",)
    halves_agree(network, split, image)


def test_a_layer_that_is_read_and_not_called_stays_in_the_tail() -> None:
    """A low-rank update whose sum the network reads would be a constant of the trace."""

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 8)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x.flatten(1), self.layer.weight, self.layer.bias)

    network, names = with_low_rank(Reads(), 2)
    split = split_network(network, names, torch.Size((3, 2, 2)))
    assert split.whole
    tail = dict(split.tail.named_parameters())
    output = split.tail(split.trunk(torch.rand(2, 3, 2, 2))).sum()
    up = next(name for name in split.adapted if "up" in name)
    (gradient,) = torch.autograd.grad(output, [tail[up]])
    assert gradient.any()


def test_networks_of_attention_are_cut() -> None:
    torch.manual_seed(0)
    models = torchvision_module().models
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2}
    network = models.VisionTransformer(**sizes, hidden_dim=16, mlp_dim=32, num_classes=5)
    network.heads = nn.Identity()
    backbone = Backbone(prepared(network), Preprocessing(32)).with_views("mirrored")
    prefix = "body.encoder.layers.encoder_layer_1"
    adapted = [name for name, _ in backbone.named_parameters() if name.startswith(prefix)]
    split = split_network(backbone, adapted, IMAGE)
    assert not split.whole
    halves_agree(backbone, split)


@pytest.mark.parametrize(
    ("name", "prefix", "size", "views"),
    [
        ("torchvision:mobilenet_v3_small", "body.features.11", 64, "one"),
        ("torchvision:mobilenet_v3_small", "body.features.11", 64, "crops"),
        ("torchvision:resnet18", "body.layer4.1.conv2", 64, "one"),
        ("torchvision:convnext_tiny", "body.features.7.2", 64, "one"),
        ("timm:tf_efficientnet_lite0", "body.blocks.6", 64, "one"),
        ("timm:vit_tiny_patch16_224", "body.blocks.11", None, "one"),
    ],
)
def test_published_networks(name: str, prefix: str, size: int | None, views: Views) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    network = load_backbone(name, pretrained=False, size=size).with_views(views)
    adapted = [n for n, _ in network.named_parameters() if n.startswith(prefix)]
    split = split_network(network, adapted, IMAGE)
    assert not split.whole
    trunk = sum(p.numel() for p in split.trunk.parameters())
    tail = sum(p.numel() for p in split.tail.parameters())
    whole = sum(p.numel() for p in network.parameters())
    assert trunk + tail == whole
    assert trunk > 0
    with torch.no_grad():
        images = torch.rand(3, *IMAGE)
        torch.testing.assert_close(split.tail(split.trunk(images)), network(images))


def test_names_that_are_no_parameters() -> None:
    with pytest.raises(ConfigurationError, match="'nope' is not a parameter of the network"):
        split_network(Branches(), ["nope"], IMAGE)
    with pytest.raises(ConfigurationError, match="adapted is empty"):
        split_network(Branches(), [], IMAGE)
