"""The moments of a batch and its max-pooling, in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fewshot_blo.kernel.fused.native import native_kernels
from fewshot_blo.kernel.fused.task_axis import TaskAxis, over_rows


def moments(x: Tensor, sign: Tensor, pool: int) -> tuple[Tensor, ...]:
    """Mean and biased variance ``[G, C]``, and where ``pool`` is 2 the pooled images.

    Args:
        x: ``[G, B, H, W, C]``.
        sign: 1 or -1, ``[G, C]``: of a window the value is taken that is largest after
            multiplication with it.
        pool: 2, or 1 for none.

    Returns:
        Mean, variance and perhaps ``[G, B, H // 2, W // 2, C]``.
    """
    results: tuple[Tensor, ...] = _Moments.apply(x, sign, pool)  # type: ignore[no-untyped-call]
    return results


class _Moments(Function):
    """As ``moments`` says."""

    @staticmethod
    def forward(x: Tensor, sign: Tensor, pool: int) -> tuple[Tensor, ...]:
        groups, images, height, width, channels = x.shape
        x = x.contiguous()
        mean, variance = (x.new_empty(groups, channels) for _ in range(2))
        size = (height // 2, width // 2) if pool == 2 else (0, 0)
        pooled = x.new_empty(groups, images, *size, channels)
        native_kernels().call(
            "pool_moments", x, sign.contiguous(), *x.shape, pool, pooled, mean, variance
        )
        return (mean, variance, pooled) if pool == 2 else (mean, variance)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, _, ctx.pool = inputs
        mean, _, *pooled = output
        ctx.save_for_backward(x, mean, *pooled)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any,
        of_mean: Tensor | None,
        of_variance: Tensor | None,
        of_pooled: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        x, mean, *pooled = ctx.saved_tensors
        count = x[0].numel() // x.shape[-1]
        slope = torch.zeros_like(mean) if of_variance is None else of_variance * (2 / count)
        origin = -slope * mean if of_mean is None else of_mean / count - slope * mean
        if pooled and of_pooled is None:
            of_pooled = torch.zeros_like(pooled[0])
        return _scatter_affine(of_pooled, origin, slope, x, *pooled), None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, sign: Tensor, pool: int
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        tasks = TaskAxis(info.batch_size, x, in_dims[0])
        results = moments(tasks.images(x, in_dims[0]), tasks.vectors(sign, in_dims[1]), pool)
        return tuple(tasks.restore(r) for r in results), tuple(tasks.dim(r) for r in results)


class _ScatterAffine(Function):
    """``scatter(g) + a + b x``, the gradient of ``_Moments``: g goes where the pooled came from."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor | None, a: Tensor, b: Tensor, x: Tensor, pooled: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(b, x, pooled)
        x, pool = x.contiguous(), 1 if pooled is None else 2
        result = torch.empty_like(x)
        native_kernels().call(
            "scatter_affine",
            x if g is None else g.contiguous(),
            a.contiguous(),
            b.contiguous(),
            x,
            x if pooled is None else pooled,
            *x.shape,
            pool,
            result,
        )
        return result

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        b, x, pooled = ctx.saved_tensors
        if torch.is_grad_enabled():
            of_g = None if pooled is None else _gather(u, x.detach(), pooled)
            return of_g, u.sum((1, 2, 3)), (u * x).sum((1, 2, 3)), over_rows(b) * u, None
        x = x.contiguous()
        of_a, of_b, of_x = x.new_empty(b.shape), x.new_empty(b.shape), torch.empty_like(x)
        of_g = x.new_empty(0) if pooled is None else torch.empty_like(pooled)
        native_kernels().call(
            "gather_sums",
            u.contiguous(),
            b.contiguous(),
            x,
            x if pooled is None else pooled,
            *x.shape,
            1 if pooled is None else 2,
            of_g,
            of_a,
            of_b,
            of_x,
        )
        return None if pooled is None else of_g, of_a, of_b, of_x, None


def _scatter_affine(
    g: Tensor | None, a: Tensor, b: Tensor, x: Tensor, pooled: Tensor | None = None
) -> Tensor:
    pooled = None if pooled is None else pooled.detach()
    result: Tensor = _ScatterAffine.apply(g, a, b, x, pooled)  # type: ignore[no-untyped-call]
    return result


def _gather(u: Tensor, x: Tensor, pooled: Tensor) -> Tensor:
    """From each window of u the entry where x has the pooled value: the first of equal ones."""
    height, width = pooled.shape[2:4]

    def windows(z: Tensor) -> Tensor:
        rows = (z[:, :, r : 2 * height : 2, : 2 * width] for r in (0, 1))
        return torch.stack([row[:, :, :, c::2] for row in rows for c in (0, 1)], 4)

    equal = windows(x) == pooled.unsqueeze(4)
    first = equal & (equal.cumsum(4) == 1)
    return (windows(u) * first).sum(4)
