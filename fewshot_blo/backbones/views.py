"""Several views of an image, whose features are averaged."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Views = Literal["one", "mirrored", "crops", "scales"]
"""Of an image: itself, it and its mirror image, ten (corners, centre and their mirror images), or
three sizes."""

COUNT: dict[Views, int] = {"one": 1, "mirrored": 2, "crops": 10, "scales": 3}
_SIDE = 7 / 8

ONE_SCALE = ((1.0, False),)
SCALES = ((0.75, False), (1.0, False), (1.25, True))
"""Factors of the size that the network sees, and whether it sees the mirror image."""


class ImageViews(nn.Module):
    """Views ``[B*V, C, h, w]`` of images ``[B, C, H, W]``, those of an image one after another.

    Source: Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks"
    (2012), section 4.1, for the ten crops, which here have 7/8 of the image's height and width.

    Args:
        views: which. Those of three sizes are made by the resizing, after this: see ``scales``.
    """

    def __init__(self, views: Views) -> None:
        super().__init__()
        self.views = views
        self.scales = SCALES if views == "scales" else ONE_SCALE

    def forward(self, x: Tensor) -> Tensor:
        """The views of one size."""
        if self.views in ("one", "scales"):
            return x
        crops = self._crops(x) if self.views == "crops" else [x]
        return torch.stack([*crops, *(crop.flip(-1) for crop in crops)], 1).flatten(0, 1)

    def _crops(self, x: Tensor) -> list[Tensor]:
        (height, h), (width, w) = ((n, max(round(_SIDE * n), 1)) for n in x.shape[-2:])
        down, right = height - h, width - w
        corners = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
        return [x[..., i : i + h, j : j + w] for i, j in corners]


class MeanOverViews(nn.Module):
    """Mean ``[B, D]`` of features ``[B*V, D]``, divided by their lengths first.

    Args:
        count: V; features of one view stay as they are.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        """The mean."""
        if self.count == 1:
            return x
        return F.normalize(x, dim=1).reshape(-1, self.count, x.shape[1]).mean(1)
