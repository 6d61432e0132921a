"""An affine map by channel and a leaky ReLU, in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fewshot_blo.kernel.fused.native import native_kernels
from fewshot_blo.kernel.fused.task_axis import TaskAxis, over_rows


def affine_relu(x: Tensor, scale: Tensor, shift: Tensor, slope: float) -> Tensor:
    """``y = relu(scale x + shift)`` of ``[G, B, H, W, C]``, with scale and shift ``[G, C]``.

    Args:
        slope: of the ReLU at negative values.
    """
    y: Tensor = _AffineReLU.apply(x, scale, shift, slope)  # type: ignore[no-untyped-call]
    return y


class _AffineReLU(Function):
    """As ``affine_relu`` says."""

    @staticmethod
    def forward(x: Tensor, scale: Tensor, shift: Tensor, slope: float) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        native_kernels().call(
            "affine_relu", x, scale.contiguous(), shift.contiguous(), slope, *_rows(x), y
        )
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, scale, _, ctx.slope = inputs
        ctx.save_for_backward(x, output, scale)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale = ctx.saved_tensors
        gradients: tuple[Tensor, ...] = _AffineReLUGradient.apply(  # type: ignore[no-untyped-call]
            g, x, scale, y.detach(), ctx.slope
        )
        return *gradients, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        slope: float,
    ) -> tuple[Tensor, int]:
        tasks = TaskAxis(info.batch_size, x, in_dims[0])
        scale, shift = tasks.vectors(scale, in_dims[1]), tasks.vectors(shift, in_dims[2])
        y = affine_relu(tasks.images(x, in_dims[0]), scale, shift, slope)
        return tasks.restore(y), tasks.dim(y)


class _AffineReLUGradient(Function):
    """``m g scale``, ``Σ m g x`` and ``Σ m g``, with m the ReLU's slope where y is."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, scale: Tensor, y: Tensor, slope: float
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(g, x, scale, y)
        g, x, scale = g.contiguous(), x.contiguous(), scale.contiguous()
        ctx.slope = slope
        ctx.set_materialize_grads(False)
        of_x, of_scale, of_shift = (torch.empty_like(like) for like in (x, scale, scale))
        native_kernels().call(
            "affine_relu_backward", g, x, y, scale, slope, *_rows(x), of_x, of_scale, of_shift
        )
        return of_x, of_scale, of_shift

    @staticmethod
    def backward(
        ctx: Any, u: Tensor | None, u_scale: Tensor | None, u_shift: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        g, x, scale, y = ctx.saved_tensors
        u = torch.zeros_like(x) if u is None else u
        u_scale, u_shift = (torch.zeros_like(scale) if v is None else v for v in (u_scale, u_shift))
        if torch.is_grad_enabled():
            active = torch.where(y <= 0, ctx.slope, torch.ones_like(y))
            of_g = active * (u * over_rows(scale) + over_rows(u_scale) * x + over_rows(u_shift))
            of_x, of_scale = active * g * over_rows(u_scale), (active * g * u).sum((1, 2, 3))
        else:
            g, x, scale = g.contiguous(), x.contiguous(), scale.contiguous()
            of_g, of_x, of_scale = (torch.empty_like(like) for like in (x, x, scale))
            vectors = u_scale.contiguous(), u_shift.contiguous()
            native_kernels().call(
                "affine_relu_double",
                u.contiguous(),
                *vectors,
                g,
                x,
                y,
                scale,
                ctx.slope,
                *_rows(x),
                of_g,
                of_x,
                of_scale,
            )
        return of_g, of_x, of_scale, None, None


def _rows(x: Tensor) -> tuple[int, int, int]:
    """Groups, rows of a group and channels."""
    return x.shape[0], x[0].numel() // x.shape[-1] if len(x) else 0, x.shape[-1]
