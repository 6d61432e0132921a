"""The context of a forward pass (statistics, random key, inner step) and layers that read it.

For the duration of one forward pass the context says which rows of the batch a batch norm takes
its statistics from and which key a dropout draws its mask from. Both are tensors of one task, so
``torch.func.vmap`` can batch them like the task's parameters.
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

TorchBatchNorm = nn.modules.batchnorm._BatchNorm
"""Base class of PyTorch's batch norms."""


NO_ROWS = 0
"""For ``ForwardContext.rows``: using batch statistics is an error."""


@dataclass
class ForwardContext:
    """What one forward pass of one task depends on, besides parameters and images.

    Attributes:
        rows: weights ``[B]`` of the batch's rows in the statistics of a batch norm, or the number
            of leading rows that count; None for all.
        running: use the running statistics instead of the batch's.
        key: int64 scalar that determines all random numbers; None for the global generator.
        step: index of the inner step; None after the last step.
        calls: number of random draws so far, so that each has its own key.
    """

    rows: Tensor | int | None = None
    running: bool = False
    key: Tensor | None = None
    step: int | None = None
    calls: int = 0

    def next_key(self) -> Tensor:
        """The key of the next random draw."""
        assert self.key is not None
        key = fold(self.key, self.calls)
        self.calls += 1
        return key


_context: ContextVar[ForwardContext | None] = ContextVar("forward_context", default=None)


@contextmanager
def forward_context(context: ForwardContext) -> Iterator[None]:
    """Inside, layers read ``context``."""
    token = _context.set(context)
    try:
        yield
    finally:
        _context.reset(token)


def norm_statistics(training: bool) -> Literal["running"] | Tensor | int | None:
    """The statistics that a batch norm uses: "running", or rows as in ``ForwardContext``.

    Args:
        training: whether the layer itself would use batch statistics. If not, as in a norm that the
            user has frozen, it uses its running statistics in every pass.
    """
    context = _context.get()
    if not training or (context is not None and context.running):
        return "running"
    return None if context is None else context.rows


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


class StepwiseBatchNorm(TorchBatchNorm):
    """Batch norm with its own scale and shift for each inner step.

    The query set, and steps beyond the last, use those of the last step. Statistics are those of
    the current pass, as in PyTorch's batch norm, and so differ between steps; running statistics
    are those of passes after the last step, which alone use them.

    Source: Antoniou et al., "How to Train Your MAML" (MAML++, arXiv 1810.09502), section 4,
    per-step batch normalisation. The paper keeps running statistics of every step; here an inner
    step uses its support set's, in training and evaluation alike.

    Args:
        channels: C, number of channels.
        steps: S, number of inner steps with their own parameters.
        eps: ε, added to the variance.

    Raises:
        ConfigurationError: if the number of steps is not positive.
    """

    def __init__(self, channels: int, steps: int, *, eps: float = 1e-5) -> None:
        if steps < 1:
            raise ConfigurationError(f"steps is {steps}: stepwise batch norm needs at least 1")
        super().__init__(channels, eps=eps)
        self.weight = nn.Parameter(torch.ones(steps, channels))
        self.bias = nn.Parameter(torch.zeros(steps, channels))

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """γ and β of the current inner step, ``[C]`` each."""
        context = _context.get()
        last = len(self.weight) - 1
        step = last if context is None or context.step is None else min(context.step, last)
        return self.weight[step], self.bias[step]

    def forward(self, input: Tensor) -> Tensor:
        """Normalises ``[B, C, ...]``."""
        statistics = self.running_mean, self.running_var
        return F.batch_norm(
            input, *statistics, *self.scale_and_shift(), self.training, 0.0, self.eps
        )


_GOLDEN = 0x9E3779B97F4A7C15


def fold(key: Tensor, number: int) -> Tensor:
    """Derives a new key from a key and a number."""
    return _mix(key + _signed(number * _GOLDEN % (1 << 64)))


def uniform_from_key(key: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """Uniform numbers in [0, 1) of the given shape, each a hash of the key and its position."""
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
