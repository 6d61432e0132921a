"""Linear layers and convolutions with per-task parameters, as batched matrix products.

The images of the tasks are concatenated, ``[T*R, C, H, W]`` in channels-last memory, so that a
task's pixels are the rows of a matrix. All tasks share a weight or bias without a task axis.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot_blo.kernel.function import Function
from fewshot_blo.kernel.hooks import has_hooks

_NARROW = 16
"""Up to this many columns the transposed product is faster: several times on the CPU at rank 4."""


def product(a: Tensor, b: Tensor, added: Tensor | None = None) -> Tensor:
    """``a @ b`` of ``[T, M, K]`` and ``[T, K, N]``, plus an optional ``[T or 1, 1, N]``."""
    if b.shape[2] > _NARROW or a.shape[1] <= _NARROW:
        return torch.bmm(a, b) if added is None else torch.baddbmm(added, a, b)
    result: Tensor = _NarrowProduct.apply(a, b)
    return result if added is None else result + added


class _NarrowProduct(Function):
    """``a @ b`` with few columns, computed transposed; its gradients are such products too."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return torch.bmm(b.mT.contiguous(), a.mT).mT

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        of_a, of_b = ctx.needs_input_grad
        return product(g, b.mT) if of_a else None, product(g.mT, a).mT if of_b else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, tasks: int) -> Tensor:
    """``x W^T + b``, ``[T*R, ..., O]``.

    Args:
        x: ``[T*R, ..., I]``.
        weight: ``[T, O, I]`` or ``[O, I]``.
        bias: ``[T, O]`` or ``[O]``.
        tasks: T.
    """
    if weight.ndim == 2 and (bias is None or bias.ndim == 1):
        return F.linear(x, weight, bias)
    if weight.ndim == 2:
        y = F.linear(x, weight)
        return (y.reshape(tasks, -1, y.shape[-1]) + bias.unsqueeze(1)).reshape(y.shape)  # type: ignore[union-attr]
    rows = x.reshape(tasks, -1, x.shape[-1])
    added = None if bias is None else bias.reshape(-1, 1, bias.shape[-1])
    return product(rows, _transposed(weight), added).reshape(*x.shape[:-1], weight.shape[1])


def add_linear(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """``y + x W^T``, ``[T*R, ..., O]``, of ``[T*R, ..., O]``, ``[T*R, ..., I]``, ``[T, O, I]``."""
    tasks, outputs, inputs = weight.shape
    sums, rows = y.reshape(tasks, -1, outputs), x.reshape(tasks, -1, inputs)
    return torch.baddbmm(sums, rows, _transposed(weight)).reshape(y.shape)


def _transposed(weight: Tensor) -> Tensor:
    """``W^T``; contiguous if it has few rows, which makes the products of its gradients fast."""
    return weight.mT.contiguous() if weight.shape[2] <= _NARROW else weight.mT


def of_channels(images: Tensor) -> Tensor:
    """``[N, C, H, W]`` with the channels last, ``[N, H, W, C]``; vectors and tokens as they are."""
    return images.permute(0, 2, 3, 1) if images.ndim == 4 else images


def of_images(rows: Tensor) -> Tensor:
    """The inverse of ``of_channels``."""
    return rows.permute(0, 3, 1, 2) if rows.ndim == 4 else rows


def affine(x: Tensor, scale: Tensor, shift: Tensor, tasks: int) -> Tensor:
    """``scale x + shift`` of ``[T*R, C, ...]`` per channel; vectors are ``[T, C]`` or ``[C]``."""
    last = x.transpose(1, -1)
    if scale.ndim == 1 and shift.ndim == 1:
        return torch.addcmul(shift, last, scale).transpose(1, -1)
    shape = (-1, *[1] * (x.ndim - 1), x.shape[1])
    rows = by_task(last, tasks)
    rows = torch.addcmul(shift.reshape(shape), rows, scale.reshape(shape))
    return rows.flatten(0, 1).transpose(1, -1)


def by_task(x: Tensor, tasks: int) -> Tensor:
    """``[T*R, ...]`` as ``[T, R, ...]``."""
    rows: Tensor = x.unflatten(0, (tasks, -1))
    return rows


def is_own(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether the layer is exactly of PyTorch's class ``kind``, without hooks or a new forward."""
    return type(layer) is kind and not has_hooks(layer)


def is_convolution(layer: nn.Module) -> bool:
    """Whether the layer is PyTorch's own 2-D convolution, padded with zeros."""
    return is_own(layer, nn.Conv2d) and bool(layer.padding_mode == "zeros")


def is_product(layer: nn.Module) -> bool:
    """Whether a convolution with per-task weights is best computed as one matrix product.

    A k×k kernel makes the product k² times as wide, and its parts are then shifted and summed: this
    pays off for layers with few outputs only, such as those of low-rank updates.
    """
    if not is_convolution(layer) or layer.groups != 1:
        return False
    assert isinstance(layer, nn.Conv2d)
    pixels = layer.kernel_size[0] * layer.kernel_size[1]
    return is_pointwise(layer) or layer.out_channels * pixels <= layer.in_channels


def is_pointwise(layer: nn.Module) -> bool:
    """Whether the layer is a 1×1 convolution with stride 1, without padding or groups."""
    if not is_convolution(layer) or layer.groups != 1:
        return False
    assert isinstance(layer, nn.Conv2d)
    still = layer.padding in ((0, 0), "same", "valid")
    return still and layer.kernel_size == layer.stride == (1, 1)


def convolution(
    layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None, tasks: int
) -> Tensor:
    """The layer's convolution with the given parameters, ``[T*R, O, H', W']``.

    Args:
        layer: a convolution; ``is_product`` where the weight has a task axis.
        x: ``[T*R, I, H, W]``.
        weight: ``[T, O, I, k, k]`` or ``[O, I, k, k]``.
        bias: ``[T, O]`` or ``[O]``.
        tasks: T.
    """
    where: Any = layer.stride, layer.padding, layer.dilation
    # PyTorch convolves one image after another, which is slow for images of one pixel.
    if is_pointwise(layer) and (weight.ndim == 5 or x.shape[2:] == (1, 1)):
        return of_images(linear(of_channels(x), weight.flatten(-3), bias, tasks))
    if weight.ndim == 4:
        shared = bias if bias is None or bias.ndim == 1 else None
        if _is_depthwise(layer) and not weight.requires_grad:
            inside = layer.padding
            y: Tensor = _Depthwise.apply(x, weight, shared, inside, layer.dilation)
        else:
            y = F.conv2d(x, weight, shared, *where, layer.groups)  # type: ignore[call-overload]
        bias = None if shared is not None else bias
    else:
        # One output for each pixel of the kernel: [T, k*k*O, I].
        flat = weight.permute(0, 3, 4, 1, 2).flatten(1, 3)
        y = of_images(linear(of_channels(x), flat, None, tasks))
        y = F.conv2d(y, _mover(weight), None, *where)
    if bias is None:
        return y
    shape = (-1, 1, bias.shape[-1], 1, 1)
    return (by_task(y, tasks) + bias.reshape(shape)).flatten(0, 1)


def _mover(weight: Tensor) -> Tensor:
    """The constant kernel ``[O, k*k*O, k, k]`` that shifts the k*k parts and sums them."""
    _, outputs, _, height, width = weight.shape
    parts = torch.eye(height * width, device=weight.device, dtype=weight.dtype)
    outer = torch.eye(outputs, device=weight.device, dtype=weight.dtype)
    return torch.einsum("oc,kp->okcp", outer, parts).reshape(outputs, -1, height, width)


def _is_depthwise(layer: nn.Conv2d) -> bool:
    """Depthwise, with a depthwise convolution as input gradient, which is faster on the CPU."""
    if isinstance(layer.padding, str) or layer.stride != (1, 1):
        return False
    sides = zip(layer.padding, layer.dilation, layer.kernel_size, strict=True)
    within = all(padding <= dilation * (side - 1) for padding, dilation, side in sides)
    return within and layer.groups == layer.in_channels == layer.out_channels


class _Depthwise(Function):
    """A depthwise convolution with a constant weight, plus a bias."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.padding, ctx.dilation = padding, dilation
        return torch.conv2d(x, weight, bias, (1, 1), padding, dilation, len(weight))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        of_x, _, of_bias, *_ = ctx.needs_input_grad
        sides = zip(ctx.padding, ctx.dilation, weight.shape[2:], strict=True)
        padding = tuple(dilation * (side - 1) - inside for inside, dilation, side in sides)
        x = None
        if of_x:
            x = _Depthwise.apply(g, weight.flip(2, 3), None, padding, ctx.dilation)
        return x, None, g.sum((0, 2, 3)) if of_bias else None, None, None
