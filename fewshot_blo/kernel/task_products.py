"""Linear layers and convolutions of T tasks on the images of all tasks, by matrix products.

Images of the tasks follow each other, ``[T*R, C, H, W]`` in channels-last memory, so that the pixels
of a task are the rows of a matrix. Where a layer's weight has no task axis, all rows are of one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

_NARROW = 16
"""Up to so many columns the transposed product is faster: several times with rank 4 on the host."""


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of T matrices ``[T, M, K]`` and ``[T, K, N]``."""
    if min(a.shape[1], a.shape[2], b.shape[2]) > _NARROW:
        return torch.bmm(a, b)
    result: Tensor = _NarrowProduct.apply(a, b)  # type: ignore[no-untyped-call]
    return result


class _NarrowProduct(Function):
    """The same; the gradients are such products again, each with its own orientation."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        if b.shape[2] <= _NARROW < a.shape[1]:
            return torch.bmm(b.mT.contiguous(), a.mT).mT
        return torch.bmm(a, b)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        of_a, of_b = ctx.needs_input_grad
        return product(g, b.mT) if of_a else None, product(a.mT, g) if of_b else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, tasks: int) -> Tensor:
    """``x W^T + b``, ``[T*R, ..., O]``.

    Args:
        x: ``[T*R, ..., I]``.
        weight: ``[T, O, I]`` or ``[O, I]``.
        bias: ``[T, O]`` or ``[O]``.
        tasks: T.
    """
    if weight.ndim == 2:
        y = F.linear(x, weight)
    else:
        rows = x.reshape(tasks, -1, x.shape[-1])
        y = product(rows, weight.mT).reshape(*x.shape[:-1], weight.shape[1])
    if bias is None:
        return y
    if bias.ndim == 1:
        return y + bias
    return (y.reshape(tasks, -1, y.shape[-1]) + bias.unsqueeze(1)).reshape(y.shape)


def suits(layer: nn.Module) -> bool:
    """Whether ``convolution`` serves this layer: of one group, with its weight in one product.

    A kernel of several pixels makes a product as many times as wide, whose parts are then moved and
    added up: that is for layers with few outputs, such as those of low-rank updates.
    """
    if type(layer) is not nn.Conv2d or layer.padding_mode != "zeros" or layer.groups != 1:
        return False
    pixels = layer.kernel_size[0] * layer.kernel_size[1]
    plain = pixels == 1 and layer.stride == (1, 1) and layer.padding in ((0, 0), "same", "valid")
    return plain or layer.out_channels * pixels <= layer.in_channels


def convolution(
    layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None, tasks: int
) -> Tensor:
    """The layer's convolution with parameters of each task, ``[T*R, O, H', W']``.

    Args:
        layer: one that ``suits``, or any where the weight has no task axis.
        x: ``[T*R, I, H, W]``.
        weight: ``[T, O, I, k, k]`` or ``[O, I, k, k]``.
        bias: ``[T, O]`` or ``[O]``.
        tasks: T.
    """
    where: Any = layer.stride, layer.padding, layer.dilation
    if weight.ndim == 4:
        y = F.conv2d(x, weight, None, *where, layer.groups)
    else:
        outputs, height, width = weight.shape[1], *weight.shape[3:]
        # One output for each pixel of the kernel: [T, k*k*O, I].
        flat = weight.permute(0, 3, 4, 1, 2).flatten(1, 3)
        y = linear(x.permute(0, 2, 3, 1), flat, None, tasks).permute(0, 3, 1, 2)
        if height * width > 1 or layer.stride != (1, 1):
            y = F.conv2d(y, _mover(outputs, height, width, y), None, *where)
    if bias is None:
        return y
    return linear_bias(y, bias, tasks)


def linear_bias(y: Tensor, bias: Tensor, tasks: int) -> Tensor:
    """``[T*R, O, H, W]`` with ``[T, O]`` or ``[O]`` added."""
    if bias.ndim == 1:
        return y + bias[:, None, None]
    return (y.unflatten(0, (tasks, -1)) + bias[:, None, :, None, None]).flatten(0, 1)


def _mover(outputs: int, height: int, width: int, like: Tensor) -> Tensor:
    """The kernel ``[O, k*k*O, k, k]`` that takes each part from its pixel and adds them up."""
    count = height * width
    part = torch.eye(count, device=like.device, dtype=like.dtype).reshape(count, height, width)
    same = torch.eye(outputs, device=like.device, dtype=like.dtype)
    return torch.einsum("oc,khw->okchw", same, part).flatten(1, 2)
