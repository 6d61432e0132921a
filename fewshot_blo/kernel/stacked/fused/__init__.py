"""Fused batch norm, leaky ReLU and 2×2 max-pooling, with fused first and second derivatives.

Max-pooling commutes with a per-channel affine map and a ReLU: the maximum of a window stays the
maximum if the scale is positive, and becomes the minimum if it is negative. So windows are pooled
first, and only the moments of the batch are computed at full resolution:

    μ, v, p = mean, variance and pooled x                             (``moments``)
    y = relu(scale p + shift),  scale = γ / √(v + ε),  shift = β - μ scale   (``affine_relu``)

Each function is one pass over memory, and so are its first and second derivatives. Images are
``[G*B, C, H, W]`` in channels-last memory: G groups of B images that share their statistics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_blo.kernel.plain import is_plain
from fewshot_blo.kernel.precision import is_autocast
from fewshot_blo.kernel.stacked.fused.affine_relu import affine_relu
from fewshot_blo.kernel.stacked.fused.device import kernels_for, triton_kernels
from fewshot_blo.kernel.stacked.fused.moments import moments
from fewshot_blo.kernel.stacked.fused.native import native_kernels
from fewshot_blo.kernel.stacked.fused.setting import are_wanted, fused_kernels

__all__ = [
    "Then",
    "describe_kernels",
    "fused_kernels",
    "has_kernels",
    "is_fused",
    "native_kernels",
    "norm_relu_pool",
    "operand_type",
    "triton_kernels",
]


@dataclass(frozen=True)
class Then:
    """What follows a batch norm.

    Attributes:
        slope: negative slope of a leaky ReLU, at least 0; 1 for none.
        pool: 2 for 2×2 max-pooling; 1 for none.
    """

    slope: float = 1.0
    pool: int = 1


def has_kernels(x: Tensor) -> bool:
    """Whether there are kernels for tensors of this dtype and device.

    Under autocast the dtype of products counts, which images have between the blocks.
    """
    dtypes = kernels_for(x.device).dtypes
    return bool(dtypes) and operand_type(x) in dtypes


def operand_type(x: Tensor) -> torch.dtype:
    """The dtype of a product's operands: autocast's if that is on, otherwise that of x."""
    return torch.get_autocast_dtype(x.device.type) if is_autocast(x.device) else x.dtype


def is_fused(x: Tensor) -> bool:
    """Whether blocks with input x run fused."""
    return x.ndim == 4 and not is_plain() and are_wanted(x.device) and has_kernels(x)


def describe_kernels(device: torch.device) -> str:
    """One line on whether a device has fused kernels."""
    reason = kernels_for(device).reason
    if reason:
        return f"norm, ReLU and pooling are separate: {reason}"
    return "fused" if are_wanted(device) else "separate; fused in Triton on request"


def norm_relu_pool(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    then: Then,
    *,
    statistics: tuple[Tensor, Tensor] | None = None,
    first: int | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Batch norm and what follows it, ``[G*B, C, H // pool, W // pool]``.

    Args:
        x: ``[G*B, C, H, W]``.
        weight: γ, ``[G, C]``.
        bias: β, ``[G, C]``.
        eps: ε.
        then: what follows the batch norm.
        statistics: mean and variance, ``[G, C]``; None for those of the batch.
        first: number of leading images of each group that count in batch statistics; None for all.
        dtype: dtype of the result; None for that of x. Vectors may be more precise than x.
    """
    dtype = dtype or x.dtype
    if then.pool == 1:
        # Two gradients of x nearly cancel: only their sum may be rounded to bfloat16.
        x = x.to(weight.dtype)
    sign = torch.where(weight.detach() < 0, -1.0, 1.0).to(weight.dtype)
    if first is not None and statistics is None:
        chosen = x.reshape(len(weight), -1, *x.shape[1:])[:, :first].flatten(0, 1)
        mean, variance = moments(chosen, sign, 1)
        statistics = mean, variance
    if statistics is None or then.pool > 1:
        mean, variance, *pooled = moments(x, sign, then.pool)
        x = pooled[0] if pooled else x
        statistics = statistics or (mean, variance)
    mean, variance = statistics
    scale = weight * torch.rsqrt(variance + eps)
    shift = torch.addcmul(bias, mean, scale, value=-1)
    return affine_relu(x, scale, shift, then.slope, dtype)
