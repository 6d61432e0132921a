"""Layers whose behaviour depends on more than their input: batch norm and dropout.

The kernel says, for the duration of one forward pass, which rows of the batch a norm takes its
statistics from and which random key a dropout draws its mask from. Both are tensors of one task,
so they may be batched by ``torch.func.vmap`` like the task's parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot_blo.errors import ConfigurationError


@dataclass
class ForwardContext:
    """What one forward pass of one task knows beside its images.

    Attributes:
        rows: weights ``[B]`` of the batch's rows in the statistics of a batch norm, or how many of
            the first rows alone count; None for all.
        running: use the running statistics instead of the batch's.
        key: int64 scalar that fixes the dropout masks; None draws from the global generator.
        step: number of the inner step; None after the last one.
        calls: dropout layers passed so far, so that each draws its own mask.
    """

    rows: Tensor | int | None = None
    running: bool = False
    key: Tensor | None = None
    step: int | None = None
    calls: int = 0


_context: ContextVar[ForwardContext | None] = ContextVar("forward_context", default=None)


@contextmanager
def forward_context(context: ForwardContext) -> Iterator[None]:
    """Makes ``context`` known to the layers of the forward passes inside."""
    token = _context.set(context)
    try:
        yield
    finally:
        _context.reset(token)


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the channel axis, with statistics by task.

    Inside the kernel the statistics are those of the rows that the kernel names (transductive: all
    rows; inductive: the support rows, or the running statistics). Outside, ``train()`` and
    ``eval()`` choose between the batch's and the running statistics, as everywhere in PyTorch.
    The running statistics change only through ``estimate_statistics``: a forward pass has no
    side effect.

    Source: Ioffe & Szegedy, "Batch Normalization" (arXiv 1502.03167).
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def statistics(self) -> Literal["running"] | Tensor | int | None:
        """Where the next forward pass takes its statistics from: as ``ForwardContext.rows``."""
        context = _context.get() or ForwardContext(running=not self.training)
        return "running" if context.running else context.rows

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """γ and β of the next forward pass, ``[C]`` each."""
        if self.weight is None or self.bias is None:
            return torch.ones_like(self.running_mean), torch.zeros_like(self.running_mean)
        return self.weight, self.bias

    def forward(self, x: Tensor) -> Tensor:
        """Normalises ``x``, ``[B, C, ...]``."""
        statistics = self.statistics()
        weight, bias = self.scale_and_shift()
        # Variances are small differences of large numbers.
        x = x.float() if x.dtype == torch.bfloat16 else x
        if isinstance(statistics, str):
            return F.batch_norm(
                x, self.running_mean, self.running_var, weight, bias, False, eps=self.eps
            )
        if statistics is None:
            return F.batch_norm(x, None, None, weight, bias, True, eps=self.eps)
        shape = [1, -1] + [1] * (x.ndim - 2)
        return self._by_rows(x, statistics) * weight.reshape(shape) + bias.reshape(shape)

    def _by_rows(self, x: Tensor, rows: Tensor | int) -> Tensor:
        """Every row normalised by the statistics of some."""
        mean, variance = batch_moments(x, rows)
        return (x - mean) * torch.rsqrt(variance + self.eps)


def batch_moments(x: Tensor, rows: Tensor | int | None) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel of ``x``, ``[B, C, ...]``, as ``[1, C, 1, ...]``.

    Args:
        x: the batch.
        rows: as in ``ForwardContext``.
    """
    axes = [0, *range(2, x.ndim)]
    if not isinstance(rows, Tensor):
        variance, mean = torch.var_mean(x[:rows], axes, correction=0, keepdim=True)
        return mean, variance
    weights = rows.reshape([-1] + [1] * (x.ndim - 1)).to(x.dtype)
    weights = weights / (weights.sum() * math.prod(x.shape[2:]))
    mean = (weights * x).sum(axes, keepdim=True)
    return mean, (weights * (x - mean).square()).sum(axes, keepdim=True)


class StepwiseBatchNorm(BatchNorm):
    """Batch norm with a scale and a shift of its own for each inner step.

    The query set is normalised with those of the last step, and so are steps beyond it. Statistics
    are those of the pass at hand, as in ``BatchNorm``, and so differ from step to step by
    themselves; the running ones are of passes after the last step, the only ones that use them.

    Source: Antoniou et al., "MAML++" (arXiv 1810.09502), section 4, per-step batch normalisation.
    There running statistics of every step are kept; an inner step takes its support set's, in
    training and in test alike.

    Args:
        channels: C.
        steps: S, inner steps that have parameters of their own.
        eps: as in ``BatchNorm``.

    Raises:
        ConfigurationError: if the number of steps is not positive.
    """

    def __init__(self, channels: int, steps: int, *, eps: float = 1e-5) -> None:
        if steps < 1:
            raise ConfigurationError(f"batch norm for {steps} inner steps: it needs at least 1")
        super().__init__(channels, eps=eps)
        self.weight = nn.Parameter(torch.ones(steps, channels))
        self.bias = nn.Parameter(torch.zeros(steps, channels))

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Those of the inner step, ``[C]`` each."""
        weight, bias = super().scale_and_shift()
        context = _context.get()
        last = len(weight) - 1
        step = last if context is None or context.step is None else min(context.step, last)
        return weight[step], bias[step]


class Dropout(nn.Module):
    """Dropout whose mask is a function of the task's key, the inner step and the layer alone.

    So it does not depend on the chunk size, the backend or the device, and a recomputed step
    draws the mask it drew before.

    Args:
        p: probability of zeroing an entry.
        channels: zero whole channels, as ``nn.Dropout2d`` does.

    Raises:
        ConfigurationError: if ``p`` is no probability below 1.
    """

    def __init__(self, p: float = 0.5, *, channels: bool = False) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ConfigurationError(f"dropout probability is {p}: it must be in [0, 1)")
        self.p = p
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Drops entries of ``x``, ``[B, ...]`` (or of ``[B, C, ...]`` by channel)."""
        if not self.training or self.p == 0:
            return x
        shape = x.shape[:2] + (1,) * (x.ndim - 2) if self.channels else x.shape
        context = _context.get()
        if context is None or context.key is None:
            uniform = torch.rand(shape, device=x.device)
        else:
            key = fold(context.key, context.calls)
            context.calls += 1
            uniform = uniform_from_key(key, shape)
        return x * (uniform >= self.p) / (1 - self.p)


_GOLDEN = 0x9E3779B97F4A7C15


def fold(key: Tensor, number: int) -> Tensor:
    """A new key from a key and a number."""
    return _mix(key + _signed(number * _GOLDEN % (1 << 64)))


def uniform_from_key(key: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """Numbers in [0, 1) of the given shape, each a hash of the key and its position."""
    count = torch.arange(math.prod(shape), device=key.device)
    bits = _mix(_mix(key + count * _signed(_GOLDEN)))
    return ((bits >> 40) & 0xFFFFFF).to(torch.float32).div(1 << 24).reshape(shape)


def _mix(x: Tensor) -> Tensor:
    """The 64-bit finaliser of MurmurHash3; shifts are logical, products wrap around."""
    low_31 = (1 << 31) - 1
    x = (x ^ ((x >> 33) & low_31)) * _signed(0xFF51AFD7ED558CCD)
    x = (x ^ ((x >> 33) & low_31)) * _signed(0xC4CEB9FE1A85EC53)
    return x ^ ((x >> 33) & low_31)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word
