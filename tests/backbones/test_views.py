"""Views of an image against torchvision's."""

from __future__ import annotations

import importlib
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_images import network
from torch import nn

from fewshot_blo.backbones import Backbone, Preprocessing, split_network
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.networks.power import PowerTransform
from fewshot_blo.networks.views import COUNT, ImageViews, Views
from fewshot_blo.tasks.reading.torchvision_import import torchvision_module

IMAGES = torch.rand(3, 2, 16, 32, generator=torch.Generator().manual_seed(0))


def test_ten_crops_are_those_of_torchvision() -> None:
    torchvision_module()
    functional: Any = importlib.import_module("torchvision.transforms.functional")
    found = ImageViews("crops")(IMAGES).unflatten(0, (3, 10))
    for image, own in zip(IMAGES, found, strict=True):
        expected = functional.ten_crop(image, [14, 28])
        assert {crop.numpy().tobytes() for crop in own} == {c.numpy().tobytes() for c in expected}


def test_views_of_an_image_and_its_mirror_image_are_two() -> None:
    found = ImageViews("mirrored")(IMAGES)
    assert torch.equal(found[0::2], IMAGES)
    assert torch.equal(found[1::2], IMAGES.flip(-1))
    assert ImageViews("one")(IMAGES) is IMAGES
    assert ImageViews("crops")(IMAGES[..., :1, :1]).shape == (30, 2, 1, 1)


@pytest.mark.parametrize(("height", "width", "down", "right"), [(16, 32, 1, 1), (84, 28, 3, 1)])
def test_shifts_move_an_image_to_every_side(height: int, width: int, down: int, right: int) -> None:
    images = torch.rand(3, 2, height, width, generator=torch.Generator().manual_seed(0))
    found = ImageViews("shifts")(images).unflatten(0, (3, 9))
    mirrored = ImageViews("mirrored_shifts")(images).unflatten(0, (3, 18))
    assert torch.equal(mirrored[:, :9], found)
    assert torch.equal(mirrored[:, 9:], found.flip(-1))
    moves = []
    for view in found.unbind(1):
        for y, x in product((-down, 0, down), (-right, 0, right)):
            expected = torch.zeros_like(images)
            for i, j in product(range(height), range(width)):
                if 0 <= i + y < height and 0 <= j + x < width:
                    expected[..., i, j] = images[..., i + y, j + x]
            if torch.equal(view, expected):
                moves.append((y, x))
    assert sorted(moves) == sorted(product((-down, 0, down), (-right, 0, right)))


def test_pixels_of_bytes_move_as_intensities_do() -> None:
    images = (255 * IMAGES).to(torch.uint8)
    assert torch.equal(ImageViews("shifts")(images).float(), ImageViews("shifts")(images.float()))


@pytest.mark.parametrize("views", ["mirrored", "crops", "shifts", "mirrored_shifts"])
def test_features_are_means_of_the_directions_of_the_views(views: Views) -> None:
    backbone, images = network(), torch.rand(4, 3, 18, 20)
    with torch.no_grad():
        found = backbone.with_views(views)(images)
        for image, features in zip(images, found, strict=True):
            each = [backbone(view[None])[0] for view in ImageViews(views)(image[None])]
            assert len(each) == COUNT[views]
            expected = torch.stack([F.normalize(f, dim=0) for f in each]).mean(0)
            torch.testing.assert_close(features, expected)
        torch.testing.assert_close(
            backbone.with_views(views).with_views("one")(images), backbone(images)
        )


@pytest.mark.parametrize("size", [16, None])
def test_three_sizes_one_of_them_mirrored(size: int | None) -> None:
    backbone = network().preprocessed(size=size, sharpen=0.5)
    images = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        found = backbone.with_views("scales")(images)
        each = [
            backbone.preprocessed(size=12)(images),
            backbone.preprocessed(size=16)(images),
            backbone.preprocessed(size=20)(images.flip(-1)),
        ]
    expected = torch.stack([F.normalize(features) for features in each]).mean(0)
    torch.testing.assert_close(found, expected)


def test_networks_of_one_size_have_no_three() -> None:
    backbone = Backbone(nn.Flatten(), Preprocessing(8), views="scales")
    with pytest.raises(ConfigurationError, match="other views than scales"):
        backbone.features(torch.Size((3, 8, 8)))


@pytest.mark.parametrize("views", ["one", "mirrored", "shifts", "crops", "scales"])
def test_a_last_block_adapts_on_all_views(views: Views) -> None:
    """The frozen part is cut off, and what both parts say is what the network says."""
    backbone = network().with_views(views)
    last = [name for name, _ in backbone.named_parameters()][-2:]
    images = torch.rand(3, 3, 18, 18)
    split = split_network(backbone, last, images.shape[1:])
    assert not split.whole
    with torch.no_grad():
        torch.testing.assert_close(split.tail(split.trunk(images)), backbone(images))


@pytest.mark.parametrize("views", ["one", "mirrored"])
def test_the_power_is_of_the_features_of_all_views(views: Views) -> None:
    backbone, images = network().with_views(views), torch.rand(4, 3, 18, 20)
    with torch.no_grad():
        before, found = backbone(images), backbone.with_power(0.5)(images)
        torch.testing.assert_close(found, before.sign() * before.abs().sqrt(), atol=1e-3, rtol=1e-3)
        assert torch.equal(backbone.with_power(0.5).with_power(1.0)(images), before)
    with pytest.raises(ConfigurationError, match="power is 0"):
        backbone.with_power(0.0)


def test_the_power_has_a_gradient_at_zero() -> None:
    x = torch.tensor([0.0, 0.25, -0.25], requires_grad=True)
    y = PowerTransform(0.5)(x)
    torch.testing.assert_close(y.detach(), torch.tensor([0.0, 0.5, -0.5]), atol=1e-5, rtol=0)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, torch.tensor([0.0, 1.0, 1.0]), atol=1e-5, rtol=0)
