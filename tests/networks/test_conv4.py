from __future__ import annotations

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.networks import Conv4, Norm, classifier, make_norm


@pytest.mark.parametrize("size", [16, 28, 84])
def test_number_of_features(size: int) -> None:
    encoder = Conv4(channels=3, hidden=8)
    assert encoder(torch.rand(2, 3, size, size)).shape == (2, encoder.features(size))


def test_maps_of_fewer_pools() -> None:
    encoder = Conv4(hidden=8, pools=2)
    assert encoder(torch.rand(2, 1, 28, 28)).shape == (2, 8 * 7 * 7) == (2, encoder.features(28))
    with pytest.raises(ConfigurationError, match="pools is 5"):
        Conv4(pools=5)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize(("size", "side"), [(28, 2), (33, 3), (84, 6), (1, 1)])
def test_strides_keep_odd_rows(size: int, side: int, mean: bool) -> None:
    encoder = Conv4(hidden=8, norm="none", downsampling="stride", mean=mean)
    pixels = torch.rand(2, 1, size, size)
    entries = 8 if mean else 8 * side * side
    assert encoder(pixels).shape == (2, entries) == (2, encoder.features(size))
    expected = pixels
    for block in encoder.blocks.children():
        convolution = block.get_submodule("convolution")
        assert isinstance(convolution, nn.Conv2d)
        expected = F.relu(F.conv2d(expected, convolution.weight, convolution.bias, 2, 1))
    expected = expected.mean((2, 3)) if mean else expected.flatten(1)
    torch.testing.assert_close(encoder(pixels), expected)


def test_has_the_parameters_of_the_literature() -> None:
    network = classifier(Conv4(hidden=64), 64, 5)
    # Four 3x3 convolutions with bias, four batch norms, and a linear layer from 64 to 5.
    convolutions = (1 + 3 * 64) * 9 * 64 + 4 * 64
    assert sum(p.numel() for p in network.parameters()) == convolutions + 8 * 64 + 65 * 5
    assert {name.split(".")[0] for name, _ in network.named_parameters()} == {"encoder", "head"}


def test_small_images_are_named() -> None:
    with pytest.raises(ConfigurationError, match=r"15x20 is too small.*16x16"):
        Conv4()(torch.rand(1, 1, 15, 20))


@pytest.mark.parametrize(
    ("norm", "layer"),
    [
        ("batch", nn.BatchNorm2d),
        ("group", nn.GroupNorm),
        ("layer", nn.GroupNorm),
        ("instance", nn.InstanceNorm2d),
        ("none", nn.Identity),
    ],
)
def test_norm_layers(norm: Norm, layer: type[nn.Module]) -> None:
    assert norm in get_args(Norm)
    made = make_norm(norm, 16)
    assert type(made) is layer
    x = torch.randn(4, 16, 3, 3) * 5 + 2
    out = made(x)
    axes = {"batch": (0, 2, 3), "layer": (1, 2, 3), "instance": (2, 3)}.get(norm)
    if axes:
        torch.testing.assert_close(
            out.mean(axes), torch.zeros_like(out.mean(axes)), atol=1e-5, rtol=0
        )
    if norm != "batch":
        torch.testing.assert_close(made(x[:1]), out[:1])


def test_group_norm_needs_multiples_of_eight() -> None:
    with pytest.raises(ConfigurationError, match=r"12 channels.*multiple of 8"):
        Conv4(hidden=12, norm="group")
