"""Two ways to compute a grouped convolution and its two gradients, and the choice between them.

"grouped" is PyTorch's own. "im2col" writes out the window under each output pixel and leaves the
rest to batched matrix products; it moves more memory, and runs on tensor cores where the kernels
for many small groups do not. On the host "grouped" is used, whose kernels reach the speed of matrix
products; on a CUDA device both are timed once for each kind of product, shape and type.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot_blo.kernel.precision import product_flags
from fewshot_blo.kernel.timing import best_seconds

Kind = Literal["output", "input", "weight"]
Algorithm = Literal["grouped", "im2col"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Geometry:
    """Of a convolution: all that is neither input nor weight."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    channels_last: bool = False

    def times(self, tasks: int) -> Geometry:
        """The geometry of as many convolutions side by side."""
        return replace(self, groups=self.groups * tasks)

    def arrange(self, x: Tensor) -> Tensor:
        """The same ``[B, C, H, W]`` in the memory layout of the convolution."""
        if not self.channels_last:
            return x.contiguous()
        _, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).contiguous()
        # With one channel, or one pixel, only strides say which of the layouts is meant.
        return rows.as_strided(x.shape, (height * width * channels, 1, width * channels, channels))


def product(kind: Kind, a: Tensor, b: Tensor, other: Tensor | None, geometry: Geometry) -> Tensor:
    """One of the three partial derivatives of ``<g, x * w>``.

    Args:
        kind: "output" takes x and w, "input" g and w, "weight" g and x.
        a: the first of them.
        b: the second of them.
        other: for "output" the bias or None; for "input" and "weight" any x or w, for its shape.
        geometry: of the convolution.
    """
    a, b = geometry.arrange(a), geometry.arrange(b)
    algorithm = choose(kind, a, b, other, geometry)
    return ALGORITHMS[algorithm](kind, a, b, other, geometry)


def grouped(kind: Kind, a: Tensor, b: Tensor, other: Tensor | None, geometry: Geometry) -> Tensor:
    """By PyTorch's convolutions."""
    where = geometry.stride, geometry.padding, geometry.dilation
    if kind == "output":
        return torch.conv2d(a, b, other, *where, geometry.groups)
    assert other is not None
    other = geometry.arrange(other)
    x, weight = (other, b) if kind == "input" else (b, other)
    mask = (kind == "input", kind == "weight", False)
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        a, x, weight, None, *where, False, (0, 0), geometry.groups, mask
    )
    result: Tensor = of_x if kind == "input" else of_weight
    return result


def im2col(kind: Kind, a: Tensor, b: Tensor, other: Tensor | None, geometry: Geometry) -> Tensor:
    """By batched matrix products of ``[G, O, C*k*k]`` with ``[G, C*k*k, B*H'*W']``."""
    groups = geometry.groups
    if kind == "output":
        images, _, height, width = a.shape
        size = [
            (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for side, padding, dilation, kernel, stride in zip(
                (height, width),
                geometry.padding,
                geometry.dilation,
                b.shape[2:],
                geometry.stride,
                strict=True,
            )
        ]
        output = b.reshape(groups, len(b) // groups, -1) @ _windows(a, b.shape[2:], geometry)
        output = output.reshape(groups, -1, images, *size).movedim(2, 0)
        output = output.reshape(images, -1, *size)
        return output if other is None else output.add_(other.reshape(-1, 1, 1))
    assert other is not None
    g = a.reshape(len(a), groups, -1, a[0, 0].numel()).permute(1, 2, 0, 3).flatten(2)
    if kind == "weight":
        windows = _windows(b, other.shape[2:], geometry)
        return (g @ windows.transpose(1, 2)).reshape(other.shape)
    windows = b.reshape(groups, len(b) // groups, -1).transpose(1, 2) @ g
    columns = windows.reshape(groups, windows.shape[1], len(a), -1).movedim(2, 0).flatten(1, 2)
    where = geometry.dilation, geometry.padding, geometry.stride
    return F.fold(columns, other.shape[2:], b.shape[2:], *where)


def _windows(x: Tensor, kernel: torch.Size, geometry: Geometry) -> Tensor:
    """``[G, C*k*k, B*H'*W']``."""
    where = geometry.dilation, geometry.padding, geometry.stride
    columns = F.unfold(x, kernel, *where)
    columns = columns.reshape(len(x), geometry.groups, -1, columns.shape[-1])
    return columns.permute(1, 2, 0, 3).flatten(2)


ALGORITHMS: dict[Algorithm, Callable[[Kind, Tensor, Tensor, Tensor | None, Geometry], Tensor]] = {
    "grouped": grouped,
    "im2col": im2col,
}

_chosen: dict[tuple[object, ...], Algorithm] = {}


def choose(kind: Kind, a: Tensor, b: Tensor, other: Tensor | None, geometry: Geometry) -> Algorithm:
    """The faster algorithm on this device, timed when it is first asked for.

    Where deterministic algorithms are asked for it is always "grouped", for timings vary.
    """
    if a.device.type != "cuda" or torch.are_deterministic_algorithms_enabled():
        return "grouped"
    key = (kind, a.shape, b.shape, a.dtype, a.device, geometry, product_flags())
    if key not in _chosen:
        seconds = {name: _seconds(name, kind, a, b, other, geometry) for name in ALGORITHMS}
        _chosen[key] = min(seconds, key=lambda name: seconds[name])
        figures = ", ".join(f"{name} {1e3 * s:.3f} ms" for name, s in seconds.items())
        shapes = f"{list(a.shape)}, {list(b.shape)}, {geometry.groups} groups, {a.dtype}"
        logger.info("convolution (%s, %s): %s, from %s", kind, shapes, _chosen[key], figures)
    return _chosen[key]


def _seconds(
    name: Algorithm, kind: Kind, a: Tensor, b: Tensor, other: Tensor | None, geometry: Geometry
) -> float:
    try:
        return best_seconds(lambda: ALGORITHMS[name](kind, a, b, other, geometry), a.device)
    except torch.OutOfMemoryError:
        return float("inf")
