"""Converts images to the contiguous channels-last rows that the kernels read, and back."""

from __future__ import annotations

from torch import Tensor


def rows_of(x: Tensor, groups: int) -> Tensor:
    """``[G*B, C, H, W]`` as contiguous ``[G, B, H, W, C]``; no copy if x is channels-last."""
    images, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).contiguous()
    return rows.view(groups, images // max(groups, 1), height, width, channels)


def images_of(rows: Tensor) -> Tensor:
    """The inverse of ``rows_of``: ``[G*B, C, H, W]`` from ``[G, B, H, W, C]``."""
    return rows.flatten(0, 1).permute(0, 3, 1, 2)


def over_rows(vectors: Tensor, x: Tensor) -> Tensor:
    """Vectors ``[G, C]`` repeated for the images of x, ``[G*B, C, 1, 1]``."""
    repeated = vectors.repeat_interleave(len(x) // max(len(vectors), 1), 0)
    return repeated[:, :, None, None]
