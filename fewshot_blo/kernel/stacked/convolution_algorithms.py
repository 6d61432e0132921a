"""Algorithms for a convolution and its two gradients.

"grouped" is PyTorch's own and computes every case. "im2col" writes out the window of each output
pixel and leaves the rest to batched matrix products; it moves more memory, but runs on tensor cores
where kernels for many small groups do not. "windows" does the same for channels-last images of
tasks one after another, without transposing activations. "triton" is a Triton kernel of this
project for the same layout, which reads the windows in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot_blo.kernel.stacked.fused.device import triton_kernels
from fewshot_blo.kernel.stacked.geometry import Geometry, put_after, put_beside

__all__ = ["ALGORITHMS", "Algorithm", "Compute", "Geometry", "Kind", "by_halves", "can_halve"]

Kind = Literal["output", "input", "weight"]
Algorithm = Literal["grouped", "im2col", "windows", "triton"]
Compute = Callable[[Kind, Tensor, Tensor, Tensor | None, Geometry], Tensor]

WINDOW_ENTRIES = 1 << 28
"""Most window entries that are written at a time: 1 GiB in float32."""


def grouped(kind: Kind, a: Tensor, b: Tensor, other: Tensor | None, geometry: Geometry) -> Tensor:
    """PyTorch's own convolutions."""
    if geometry.tasks > 1:
        return _grouped_beside(kind, a, b, other, geometry)
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


def _grouped_beside(
    kind: Kind, a: Tensor, b: Tensor, other: Tensor | None, geometry: Geometry
) -> Tensor:
    """Convolves the tasks' images side by side, and puts the result one after another again."""
    tasks = geometry.tasks
    beside = replace(geometry.times(tasks), tasks=1)
    if kind == "weight":
        return grouped(kind, put_beside(a, tasks), put_beside(b, tasks), other, beside)
    if kind == "input":
        assert other is not None
        images, channels, *size = other.shape
        # Only its shape matters.
        other = other.new_empty(images // tasks, *size, tasks * channels).permute(0, 3, 1, 2)
    return put_after(grouped(kind, put_beside(a, tasks), b, other, beside), tasks)


def im2col(kind: Kind, a: Tensor, b: Tensor, other: Tensor | None, geometry: Geometry) -> Tensor:
    """Batched matrix products of ``[G, O, C*k*k]`` with ``[G, C*k*k, B*H'*W']``."""
    groups = geometry.groups
    if kind == "output":
        size = geometry.output_size(a, b)
        output = b.reshape(groups, len(b) // groups, -1) @ _columns(a, b.shape[2:], geometry)
        output = output.reshape(groups, -1, len(a), *size).movedim(2, 0)
        output = output.reshape(len(a), -1, *size)
        return output if other is None else output.add_(other.reshape(-1, 1, 1))
    assert other is not None
    g = a.reshape(len(a), groups, -1, a[0, 0].numel()).permute(1, 2, 0, 3).flatten(2)
    if kind == "weight":
        columns = _columns(b, other.shape[2:], geometry)
        return (g @ columns.transpose(1, 2)).reshape(other.shape)
    columns = b.reshape(groups, len(b) // groups, -1).transpose(1, 2) @ g
    columns = columns.reshape(groups, columns.shape[1], len(a), -1).movedim(2, 0).flatten(1, 2)
    where = geometry.dilation, geometry.padding, geometry.stride
    return F.fold(columns, other.shape[2:], b.shape[2:], *where)


def _columns(x: Tensor, kernel: torch.Size, geometry: Geometry) -> Tensor:
    """``[G, C*k*k, B*H'*W']``."""
    where = geometry.dilation, geometry.padding, geometry.stride
    columns = F.unfold(x, kernel, *where)
    columns = columns.reshape(len(x), geometry.groups, -1, columns.shape[-1])
    return columns.permute(1, 2, 0, 3).flatten(2)


def windows(kind: Kind, a: Tensor, b: Tensor, other: Tensor | None, geometry: Geometry) -> Tensor:
    """Batched matrix products of windows ``[T, B*H'*W', k*k*C]`` with ``[T, k*k*C, O]``.

    The input gradient of a convolution with stride 1 is a convolution of the output gradient g.
    """
    if kind == "input":
        mirrored = geometry.arrange(geometry.mirror(b))
        return windows("output", a, mirrored, None, geometry.mirrored(b))
    x, weight = (a, b) if kind == "output" else (b, other)
    assert weight is not None
    size = geometry.output_size(x, weight)
    if len(x) * size[0] * size[1] * weight[0].numel() > WINDOW_ENTRIES and can_halve(a, geometry):
        return by_halves(windows, kind, a, b, other, geometry)
    tasks, channels, kernel = geometry.tasks, x.shape[1], weight.shape[2:]
    rows = _windows(x, size, kernel, geometry).reshape(tasks, -1, weight[0].numel())
    if kind == "output":
        filters = weight.permute(0, 2, 3, 1).reshape(tasks, -1, rows.shape[2]).transpose(1, 2)
        output = torch.bmm(rows, filters)
        if other is not None:
            output += other.reshape(tasks, 1, -1)
        return output.reshape(len(x), *size, -1).permute(0, 3, 1, 2)
    g = a.permute(0, 2, 3, 1).reshape(tasks, -1, a.shape[1])
    gradient = torch.bmm(g.transpose(1, 2), rows)
    return gradient.reshape(-1, *kernel, channels).permute(0, 3, 1, 2)


def _windows(x: Tensor, size: tuple[int, int], kernel: torch.Size, geometry: Geometry) -> Tensor:
    """A strided view ``[B, H', W', k, k, C]`` of the padded images."""
    (top, left), (down, right) = geometry.padding, geometry.stride
    rows = F.pad(x.permute(0, 2, 3, 1), (0, 0, left, left, top, top)).contiguous()
    image, row, pixel, channel = rows.stride()
    steps = image, down * row, right * pixel
    taps = geometry.dilation[0] * row, geometry.dilation[1] * pixel, channel
    return rows.as_strided((len(x), *size, *kernel, x.shape[1]), (*steps, *taps))


def triton(kind: Kind, a: Tensor, b: Tensor, other: Tensor | None, geometry: Geometry) -> Tensor:
    """Triton kernels that read the windows of channels-last images in place."""
    kernels = triton_kernels().products
    assert kernels is not None
    result: Tensor
    if kind == "output":
        result = kernels.correlate(a, b, geometry.output_size(a, b), geometry)
        if other is not None:
            by_task = result.view(geometry.tasks, -1, *result.shape[1:])
            by_task += other.reshape(geometry.tasks, 1, -1, 1, 1)
        return result
    assert other is not None
    if kind == "weight":
        result = kernels.weight_gradient(a, b, other, geometry)
    else:
        mirrored = geometry.arrange(geometry.mirror(b))
        size, where = other.shape[2:], geometry.mirrored(b)
        result = kernels.correlate(a, mirrored, size, where, divisor=geometry.stride)
    return result


ALGORITHMS: dict[Algorithm, Compute] = {
    "grouped": grouped,
    "im2col": im2col,
    "windows": windows,
    "triton": triton,
}


def fits(algorithm: Algorithm, kind: Kind, geometry: Geometry) -> bool:
    """Whether an algorithm supports a product of this geometry and is available."""
    for_rows = geometry.channels_last and geometry.groups == 1
    if algorithm == "im2col":
        return geometry.tasks == 1
    if algorithm == "windows":
        return for_rows and (kind != "input" or geometry.stride == (1, 1))
    return algorithm == "grouped" or (for_rows and triton_kernels().products is not None)


def can_halve(a: Tensor, geometry: Geometry) -> bool:
    """Whether a product can be computed by halves: it has more than one task or image."""
    return geometry.tasks > 1 or len(a) > 1


def by_halves(
    compute: Compute, kind: Kind, a: Tensor, b: Tensor, other: Tensor | None, geometry: Geometry
) -> Tensor:
    """The product computed from two halves of the tasks, or of the images of a single task."""
    tasks = geometry.tasks
    count = tasks if tasks > 1 else len(a)
    halves = []
    for part in (slice(count // 2), slice(count // 2, None)):
        if tasks > 1:
            own = replace(geometry, tasks=len(range(count)[part]))
            first, second = (_of_tasks(z, part, tasks) for z in (a, b))
            third = None if other is None else _of_tasks(other, part, tasks)
        else:
            own = geometry
            first, second = a[part], b[part] if kind == "weight" else b
            third = other[part] if other is not None and kind == "input" else other
        halves.append(compute(kind, first, second, third, own))
    if kind == "weight" and tasks == 1:
        return halves[0] + halves[1]
    return geometry.arrange(torch.cat(halves))


def _of_tasks(z: Tensor, part: slice, tasks: int) -> Tensor:
    return z.reshape(tasks, -1, *z.shape[1:])[part].flatten(0, 1)
