"""Batch norm, leaky ReLU and 2×2 max-pooling in one, with fused first and second derivatives.

Max-pooling commutes with what follows it in a block of the few-shot networks, an affine map and a
ReLU: the largest of a window stays the largest where the scale is positive, and becomes the
smallest where it is negative. So windows are reduced first, and only the moments of the batch are
taken at full size:

    μ, v, p = mean, variance and pooled x                             (``moments``)
    y = relu(scale p + shift),  scale = γ / √(v + ε),  shift = β - μ scale   (``affine_relu``)

Each function here is one pass over memory, and so are its first and its second derivative. Images
are ``[G*B, C, H, W]`` in channels-last memory: G groups of B images that share their statistics.
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
        slope: of a leaky ReLU at negative values, not negative; 1 for none.
        pool: 2 for 2×2 max-pooling; 1 for none.
    """

    slope: float = 1.0
    pool: int = 1


def has_kernels(x: Tensor) -> bool:
    """Whether there are kernels for tensors of this type and device.

    Under autocast the products' type counts, which is that of the images between the blocks.
    """
    dtypes = kernels_for(x.device).dtypes
    return bool(dtypes) and operand_type(x) in dtypes


def operand_type(x: Tensor) -> torch.dtype:
    """The type of a product's operands: autocast's where that is on, or else that of x."""
    return torch.get_autocast_dtype(x.device.type) if is_autocast(x.device) else x.dtype


def is_fused(x: Tensor) -> bool:
    """Whether blocks that start from such a tensor run as one."""
    return x.ndim == 4 and not is_plain() and are_wanted(x.device) and has_kernels(x)


def describe_kernels(device: torch.device) -> str:
    """Whether there are kernels for a device, in one line."""
    reason = kernels_for(device).reason
    if reason:
        return f"norm, ReLU and pooling are separate: {reason}"
    return "fused" if are_wanted(device) else "separate; fused in Triton where asked for"


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
        then: what follows.
        statistics: mean and variance, ``[G, C]``; None for those of the batch.
        first: take the batch's statistics from so many first images of each group alone.
        dtype: of the result; None for that of x. Vectors may have more precision than x.
    """
    dtype = dtype or x.dtype
    if then.pool == 1:
        # Gradients of x come from two sides and cancel: bfloat16 is of their sum alone.
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
