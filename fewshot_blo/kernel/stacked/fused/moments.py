"""Batch moments and max-pooling in one pass, with fused derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewshot_blo.kernel.function import Function
from fewshot_blo.kernel.stacked.fused.device import kernels_for
from fewshot_blo.kernel.stacked.fused.rows import images_of, over_rows, rows_of


def moments(x: Tensor, sign: Tensor, pool: int) -> tuple[Tensor, ...]:
    """Mean and biased variance ``[G, C]``, and the pooled images if ``pool`` is 2.

    Args:
        x: ``[G*B, C, H, W]``: G groups of images that share their statistics.
        sign: 1 or -1, ``[G, C]``: pooling selects the maximum of a window if it is 1, the minimum
            if it is -1.
        pool: 2, or 1 for none.

    Returns:
        Mean, variance and, if ``pool`` is 2, ``[G*B, C, H // 2, W // 2]``.
    """
    results: tuple[Tensor, ...] = _Moments.apply(x, sign, pool)
    return results


class _Moments(Function):
    """See ``moments``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sign: Tensor, pool: int) -> tuple[Tensor, ...]:
        rows = rows_of(x, len(sign))
        groups, images, height, width, channels = rows.shape
        mean, variance = sign.new_empty(2, groups, channels).unbind()
        size = (height // 2, width // 2) if pool == 2 else (0, 0)
        pooled = sign.new_empty(groups, images, *size, channels)
        signs = sign.contiguous()
        kernels_for(x.device).call(
            "pool_moments", rows, signs, *rows.shape, pool, pooled, mean, variance
        )
        ctx.set_materialize_grads(False)
        if pool == 1:
            ctx.save_for_backward(x, mean)
            return mean, variance
        images_pooled = images_of(pooled)
        ctx.save_for_backward(x, mean, images_pooled)
        return mean, variance, images_pooled

    @staticmethod
    def backward(
        ctx: Any,
        of_mean: Tensor | None,
        of_variance: Tensor | None,
        of_pooled: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        x, mean, *pooled = ctx.saved_tensors
        count = x.numel() // mean.numel()
        slope = torch.zeros_like(mean) if of_variance is None else of_variance * (2 / count)
        origin = -slope * mean if of_mean is None else of_mean / count - slope * mean
        if pooled and of_pooled is None:
            of_pooled = torch.zeros_like(pooled[0])
        pooled = [p.detach() for p in pooled] or [None]
        of_x: Tensor = _ScatterAffine.apply(of_pooled, origin, slope, x, *pooled)
        return of_x, None, None


class _ScatterAffine(Function):
    """``scatter(g) + a + b x``, the gradient of ``_Moments``; g goes to the pooled entries."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor | None, a: Tensor, b: Tensor, x: Tensor, pooled: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(b, x, pooled)
        rows = rows_of(x, len(b))
        result = torch.empty_like(rows)
        kernels_for(x.device).call(
            "scatter_affine",
            rows if g is None else rows_of(g, len(b)),
            a.contiguous(),
            b.contiguous(),
            rows,
            rows if pooled is None else rows_of(pooled, len(b)),
            *rows.shape,
            1 if pooled is None else 2,
            result,
        )
        return images_of(result)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        b, x, pooled = ctx.saved_tensors
        if torch.is_grad_enabled():
            of_g = None if pooled is None else _gather(u, x.detach(), pooled)
            sums = (z.reshape(len(b), -1, *u.shape[1:]).sum((1, 3, 4)) for z in (u, u * x))
            return of_g, *sums, over_rows(b, u) * u, None
        rows, groups = rows_of(x, len(b)), len(b)
        of_a, of_b, of_x = b.new_empty(b.shape), b.new_empty(b.shape), torch.empty_like(rows)
        pooled_rows = rows if pooled is None else rows_of(pooled, groups)
        of_g = rows.new_empty(0) if pooled is None else torch.empty_like(pooled_rows)
        kernels_for(x.device).call(
            "gather_sums",
            rows_of(u, groups),
            b.contiguous(),
            rows,
            pooled_rows,
            *rows.shape,
            1 if pooled is None else 2,
            of_g,
            of_a,
            of_b,
            of_x,
        )
        return None if pooled is None else images_of(of_g), of_a, of_b, images_of(of_x), None


def _gather(u: Tensor, x: Tensor, pooled: Tensor) -> Tensor:
    """The entry of each window of u where x has the pooled value, the first one if several tie."""
    height, width = pooled.shape[2:]

    def windows(z: Tensor) -> Tensor:
        rows = (z[:, :, r : 2 * height : 2, : 2 * width] for r in (0, 1))
        return torch.stack([row[..., c::2] for row in rows for c in (0, 1)], 4)

    equal = windows(x) == pooled.unsqueeze(4)
    first = equal & (equal.cumsum(4) == 1)
    return (windows(u) * first).sum(4)
