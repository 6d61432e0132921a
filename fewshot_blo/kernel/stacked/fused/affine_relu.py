"""A per-channel affine map and a leaky ReLU in one pass, with fused derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewshot_blo.kernel.function import Function
from fewshot_blo.kernel.stacked.fused.device import kernels_for
from fewshot_blo.kernel.stacked.fused.rows import images_of, over_rows, rows_of


def affine_relu(
    x: Tensor, scale: Tensor, shift: Tensor, slope: float, dtype: torch.dtype | None = None
) -> Tensor:
    """``y = relu(scale x + shift)``, ``[G*B, C, H, W]``.

    Args:
        x: images ``[G*B, C, H, W]``.
        scale: scale ``[G, C]``.
        shift: shift ``[G, C]``.
        slope: negative slope of the leaky ReLU.
        dtype: dtype of y; None for that of x.
    """
    y: Tensor = _AffineReLU.apply(x, scale, shift, slope, dtype or x.dtype)
    return y


class _AffineReLU(Function):
    """See ``affine_relu``."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, slope: float, dtype: torch.dtype
    ) -> Tensor:
        rows = rows_of(x, len(scale))
        result = torch.empty_like(rows, dtype=dtype)
        vectors = scale.contiguous(), shift.contiguous()
        kernels_for(x.device).call("affine_relu", rows, *vectors, slope, *_sizes(rows), result)
        y = images_of(result)
        ctx.slope = slope
        ctx.save_for_backward(x, y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale = ctx.saved_tensors
        gradients: tuple[Tensor, ...] = _AffineReLUGradient.apply(
            g, x, scale, y.detach(), ctx.slope
        )
        return *gradients, None, None


class _AffineReLUGradient(Function):
    """``m g scale``, ``Σ m g x`` and ``Σ m g``, with m the derivative of the ReLU at y."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, scale: Tensor, y: Tensor, slope: float
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(g, x, scale, y)
        ctx.slope = slope
        ctx.set_materialize_grads(False)
        inputs = [rows_of(z, len(scale)) for z in (g, x, y)]
        of_x = torch.empty_like(inputs[1])
        of_scale, of_shift = scale.new_empty(2, *scale.shape).unbind()
        results = of_x, of_scale, of_shift
        sizes = _sizes(of_x)
        kernels_for(x.device).call(
            "affine_relu_backward", *inputs, scale.contiguous(), slope, *sizes, *results
        )
        return images_of(of_x), of_scale, of_shift

    @staticmethod
    def backward(
        ctx: Any, u: Tensor | None, u_scale: Tensor | None, u_shift: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        g, x, scale, y = ctx.saved_tensors
        u = torch.zeros_like(x) if u is None else u
        u_scale, u_shift = (torch.zeros_like(scale) if v is None else v for v in (u_scale, u_shift))
        if torch.is_grad_enabled():
            active = torch.where(y <= 0, ctx.slope, torch.ones_like(y))
            by_scale, by_u_scale, by_u_shift = (over_rows(v, x) for v in (scale, u_scale, u_shift))
            of_g = active * (u * by_scale + by_u_scale * x + by_u_shift)
            of_x = active * g * by_u_scale
            of_scale = (active * g * u).reshape(len(scale), -1, *u.shape[1:]).sum((1, 3, 4))
            return of_g, of_x, of_scale, None, None
        inputs = [rows_of(z, len(scale)) for z in (u, g, x, y)]
        vectors = [v.contiguous() for v in (u_scale, u_shift, scale)]
        rows_of_g, rows_of_x = (torch.empty_like(z) for z in inputs[1:3])
        of_scale = torch.empty_like(vectors[2])
        kernels_for(x.device).call(
            "affine_relu_double",
            inputs[0],
            *vectors[:2],
            *inputs[1:],
            vectors[2],
            ctx.slope,
            *_sizes(rows_of_g),
            rows_of_g,
            rows_of_x,
            of_scale,
        )
        return images_of(rows_of_g), images_of(rows_of_x), of_scale, None, None


def _sizes(rows: Tensor) -> tuple[int, int, int]:
    """Numbers of groups, of pixels per group and of channels."""
    groups, images, height, width, channels = rows.shape
    return groups, images * height * width, channels
