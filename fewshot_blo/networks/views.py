"""Views of an image (mirror images, shifts, crops, sizes) whose features are averaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Views = Literal["one", "mirrored", "shifts", "mirrored_shifts", "crops", "scales"]
"""Views of an image: the image itself; with its mirror image; nine shifts; these with their mirror
images; ten crops (corners and centre, with mirror images); or three sizes."""

COUNT: dict[Views, int] = {
    "one": 1,
    "mirrored": 2,
    "shifts": 9,
    "mirrored_shifts": 18,
    "crops": 10,
    "scales": 3,
}
_SIDE, _SHIFT = 7 / 8, 1 / 32

ONE_SCALE = ((1.0, False),)
SCALES = ((0.75, False), (1.0, False), (1.25, True))
"""Factors of the input size, and whether the image is mirrored."""


class ImageViews(nn.Module):
    """Views ``[B*V, C, h, w]`` of images ``[B, C, H, W]``; the V views of an image are adjacent.

    Source: Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks"
    (2012), section 4.1, for the ten crops, which here have 7/8 of the image's height and width.
    Shifts are by 1/32 of the height and width, at least by one pixel, with zero padding.

    Args:
        views: the views. Three sizes are made by resizing afterwards, as ``scales`` says.
    """

    def __init__(self, views: Views) -> None:
        super().__init__()
        self.views: Views = views
        self.scales = SCALES if views == "scales" else ONE_SCALE

    def forward(self, x: Tensor) -> Tensor:
        """The views, all of one size."""
        if self.views in ("one", "scales"):
            return x
        if self.views == "mirrored":
            seen = [x]
        else:
            seen = _crops(x) if self.views == "crops" else _shifts(x)
        if self.views != "shifts":
            seen = [*seen, *(view.flip(-1) for view in seen)]
        return torch.stack(seen, 1).flatten(0, 1)


def _crops(x: Tensor) -> list[Tensor]:
    (height, h), (width, w) = ((n, max(round(_SIDE * n), 1)) for n in x.shape[-2:])
    down, right = height - h, width - w
    corners = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
    return [x[..., i : i + h, j : j + w] for i, j in corners]


def _shifts(x: Tensor) -> list[Tensor]:
    height, width = x.shape[-2:]
    down, right = (max(round(_SHIFT * n), 1) for n in (height, width))
    margin = F.pad(x, (right, right, down, down))
    corners = [(i * down, j * right) for i in range(3) for j in range(3)]
    return [margin[..., i : i + height, j : j + width] for i, j in corners]


class MeanOverViews(nn.Module):
    """Mean ``[B, D]`` of features ``[B*V, D]``.

    Args:
        count: V, number of views; features of a single view are unchanged.
        unit: divide features by their length before averaging.
    """

    def __init__(self, count: int, *, unit: bool = True) -> None:
        super().__init__()
        self.count, self.unit = count, unit

    def forward(self, x: Tensor) -> Tensor:
        """The mean over views."""
        if self.count == 1:
            return x
        x = F.normalize(x, dim=1) if self.unit else x
        return x.reshape(-1, self.count, x.shape[1]).mean(1)


def with_own_views(network: nn.Module, views: Views) -> nn.Module | None:
    """The network with other views, if it makes views itself; otherwise None.

    Args:
        network: makes its own views if it has a method ``with_views``, as a ``Backbone`` does.
        views: views of an image.
    """
    method: Callable[[Views], nn.Module] | None = getattr(network, "with_views", None)
    return None if method is None else method(views)
