"""Batch norm, leaky ReLU and 2×2 max-pooling in one, with fused first and second derivatives.

Max-pooling commutes with what follows it in a block of the few-shot networks, an affine map and a
ReLU: the largest of a window stays the largest where the scale is positive, and becomes the
smallest where it is negative. So windows are reduced first, and only the moments of the batch are
taken at full size:

    μ, v, p = mean, variance and pooled x                             (``moments``)
    y = relu(scale p + shift),  scale = γ / √(v + ε),  shift = β - μ scale   (``affine_relu``)

Each function here is one pass over memory, and so are its first and its second derivative. Tensors
are contiguous ``[G, B, H, W, C]``: groups of images that share their statistics, images,
positions, channels. The tasks are either the groups or lie beside the channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_blo.kernel.fused.affine_relu import affine_relu
from fewshot_blo.kernel.fused.moments import moments
from fewshot_blo.kernel.fused.native import native_kernels
from fewshot_blo.kernel.plain import is_plain

__all__ = [
    "Then",
    "batch_moments",
    "describe_kernels",
    "is_fused",
    "native_kernels",
    "norm_relu_pool",
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


def is_fused(x: Tensor) -> bool:
    """Whether there are kernels for tensors of this type and device."""
    kind = x.device.type
    return (
        kind == "cpu"
        and x.ndim == 4
        and not is_plain()
        and not torch.is_autocast_enabled(kind)
        and x.dtype in native_kernels().libraries
    )


def describe_kernels(device: torch.device) -> str:
    """Whether there are kernels for a device, in one line."""
    if device.type != "cpu":
        return "norm, ReLU and pooling are separate operations on this device"
    reason = native_kernels().reason
    return f"norm, ReLU and pooling are separate: {reason}" if reason else "fused"


def batch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance ``[C]`` of ``[B, C, H, W]``; vmap adds a task axis."""
    x = x.permute(0, 2, 3, 1).unsqueeze(0)
    mean, variance = moments(x, x.new_ones(1, x.shape[-1]), 1)
    return mean.squeeze(0), variance.squeeze(0)


def norm_relu_pool(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    then: Then,
    statistics: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Batch norm and what follows it on ``[B, C, H, W]``; vmap adds a task axis.

    Args:
        weight: γ, ``[C]``.
        bias: β, ``[C]``.
        eps: ε.
        then: what follows.
        statistics: mean and variance, ``[C]``; None for those of the batch.
    """
    x = x.permute(0, 2, 3, 1).unsqueeze(0)
    mean, variance = statistics or (weight, weight)
    if statistics is None or then.pool > 1:
        sign = torch.where(weight < 0, -1.0, 1.0).to(x.dtype).unsqueeze(0)
        batch_mean, batch_variance, *pooled = moments(x, sign, then.pool)
        x = pooled[0] if pooled else x
        if statistics is None:
            mean, variance = batch_mean, batch_variance
    scale = weight * torch.rsqrt(variance + eps)
    shift = bias - mean * scale
    y = affine_relu(x, scale.reshape(1, -1), shift.reshape(1, -1), then.slope)
    return y.squeeze(0).permute(0, 3, 1, 2)
