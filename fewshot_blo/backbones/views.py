"""Several views of an image, whose features are averaged."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Views = Literal["one", "mirrored", "crops"]
"""Of an image: itself, it and its mirror image, or ten: corners, centre and their mirror images."""

COUNT: dict[Views, int] = {"one": 1, "mirrored": 2, "crops": 10}
_SIDE = 7 / 8


class ImageViews(nn.Module):
    """Views ``[B*V, C, h, w]`` of images ``[B, C, H, W]``, those of an image one after another.

    Source: Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks"
    (2012), section 4.1, for the ten crops, which here have 7/8 of the image's height and width.

    Args:
        views: which.
    """

    def __init__(self, views: Views) -> None:
        super().__init__()
        self.views = views

    def forward(self, x: Tensor) -> Tensor:
        """The views."""
        if self.views == "one":
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
