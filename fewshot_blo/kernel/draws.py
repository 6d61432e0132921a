"""Replacements of PyTorch's random functions, whose numbers are determined by the task's key.

A network's draws therefore do not depend on the chunk size, the backend or the device, and a
recomputed step repeats them. A function of ``DRAWS`` takes the forward pass's context, then the
arguments of the PyTorch function that it replaces. A call with its own generator keeps it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.kernel.layers import ForwardContext, fold, uniform_from_key

Draw = Callable[..., Any]


def _uniform(context: ForwardContext, shape: tuple[int, ...] | torch.Size, like: Tensor) -> Tensor:
    return uniform_from_key(context.next_key(), shape).to(like.device)


def _normal(context: ForwardContext, shape: torch.Size, like: Tensor) -> Tensor:
    """Standard normal numbers, by the Box-Muller transform."""
    key = context.next_key()
    first, second = (uniform_from_key(fold(key, number), shape) for number in (0, 1))
    length = (-2 * (1 - first).log()).sqrt()
    return (length * (2 * math.pi * second).cos()).to(like.device)


def _dropout(
    context: ForwardContext, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    del inplace
    return _dropped(context, x, p, training, x.shape)


def _by_channel(spatial: int) -> Draw:
    """For ``F.dropout1d`` and the like: drops channels of ``[B, C, ...]`` or ``[C, ...]``."""

    def dropout(
        context: ForwardContext,
        x: Tensor,
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
    ) -> Tensor:
        del inplace
        # dropout2d takes an input of three axes to be [B, C, L].
        axes = 1 if x.ndim == spatial + 1 and spatial != 2 else 2
        return _dropped(context, x, p, training, x.shape[:axes] + (1,) * (x.ndim - axes))

    return dropout


def _dropped(
    context: ForwardContext, x: Tensor, p: float, training: bool, shape: tuple[int, ...]
) -> Tensor:
    _check_probability(p)
    if not training or p == 0:
        return x
    if p == 1:
        return x * 0
    return x * (_uniform(context, shape, x) >= p) / (1 - p)


def _alpha_dropout(
    context: ForwardContext,
    x: Tensor,
    p: float = 0.5,
    training: bool = False,
    inplace: bool = False,
    *,
    by_channel: bool = False,
) -> Tensor:
    """Source: Klambauer et al., "Self-Normalizing Neural Networks" (arXiv 1706.02515)."""
    del inplace
    _check_probability(p)
    if not training or p == 0:
        return x
    if p == 1:
        return x * 0
    shape = x.shape[:2] + (1,) * (x.ndim - 2) if by_channel else x.shape
    kept = _uniform(context, shape, x) >= p
    lowest = -1.7580993408473766  # -λα of the SELU
    scale = 1 / math.sqrt((1 - p) * (1 + p * lowest**2))
    return scale * (torch.where(kept, x, lowest) - p * lowest)


def _feature_alpha_dropout(context: ForwardContext, *args: Any, **kwargs: Any) -> Tensor:
    return _alpha_dropout(context, *args, **kwargs, by_channel=True)


def _rrelu(
    context: ForwardContext,
    x: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Tensor:
    if not training:
        return F.rrelu(x, lower, upper, False, inplace)
    slope = lower + (upper - lower) * _uniform(context, x.shape, x).to(x.dtype)
    return torch.where(x >= 0, x, x * slope)


def _attention(
    context: ForwardContext,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if not dropout_p:
        rest: dict[str, Any] = {"enable_gqa": True} if enable_gqa else {}
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, 0.0, is_causal, scale=scale, **rest
        )
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(repeats, -3) for x in (key, value))
    scores = query @ key.transpose(-2, -1) * (scale or query.shape[-1] ** -0.5)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return _dropout(context, scores.softmax(-1), dropout_p) @ value


def _fractional(function: Draw, axes: int) -> Draw:
    """For fractional max-pooling: draws the windows' positions, one number per channel and axis."""

    def pool(context: ForwardContext, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(args) < 5 and kwargs.get("_random_samples") is None:
            batch = x.shape[0] if x.ndim == axes + 2 else 1
            samples = _uniform(context, (batch, x.shape[-axes - 1], axes), x)
            kwargs["_random_samples"] = samples.to(x.dtype)
        return function(x, *args, **kwargs)

    return pool


Fill = Callable[..., Tensor]


def _uniform_values(
    context: ForwardContext, out: Tensor, low: float = 0.0, high: float = 1.0
) -> Tensor:
    return low + (high - low) * _uniform(context, out.shape, out)


def _normal_values(
    context: ForwardContext, out: Tensor, mean: float = 0.0, std: float = 1.0
) -> Tensor:
    return mean + std * _normal(context, out.shape, out)


def _bernoulli_values(context: ForwardContext, out: Tensor, p: float | Tensor = 0.5) -> Tensor:
    return (_uniform(context, out.shape, out) < p).to(torch.float32)


def _exponential_values(context: ForwardContext, out: Tensor, lambd: float = 1.0) -> Tensor:
    return -(1 - _uniform(context, out.shape, out)).log() / lambd


def _in_place(function: Draw, values: Fill) -> Draw:
    """For ``Tensor.uniform_`` and the like."""

    def fill(context: ForwardContext, out: Tensor, *args: Any, **kwargs: Any) -> Any:
        if kwargs.pop("generator", None) is not None:
            return function(out, *args, **kwargs)
        return out.copy_(values(context, out, *args, **kwargs))

    return fill


def _new(function: Draw, values: Fill, empty: Draw) -> Draw:
    """For ``torch.rand``, ``torch.rand_like`` and the like."""

    def make(context: ForwardContext, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("generator") is not None:
            return function(*args, **kwargs)
        kwargs.pop("generator", None)
        out = empty(*args, **kwargs)
        return values(context, out).to(out.dtype)

    return make


def _bernoulli(context: ForwardContext, p: Tensor, *args: Any, **kwargs: Any) -> Any:
    if args or kwargs:
        return torch.bernoulli(p, *args, **kwargs)
    return _bernoulli_values(context, p, p).to(p.dtype)


def _check_probability(p: float) -> None:
    if not 0 <= p <= 1:
        raise ConfigurationError(f"dropout probability is {p}: it must be in [0, 1]")


DRAWS: dict[Any, Draw] = {
    F.dropout: _dropout,
    torch.dropout: lambda context, x, p, train: _dropout(context, x, p, train),
    F.dropout1d: _by_channel(1),
    F.dropout2d: _by_channel(2),
    F.dropout3d: _by_channel(3),
    F.alpha_dropout: _alpha_dropout,
    F.feature_alpha_dropout: _feature_alpha_dropout,
    F.rrelu: _rrelu,
    F.scaled_dot_product_attention: _attention,
    F.fractional_max_pool2d: _fractional(F.fractional_max_pool2d, 2),
    F.fractional_max_pool2d_with_indices: _fractional(F.fractional_max_pool2d_with_indices, 2),
    F.fractional_max_pool3d: _fractional(F.fractional_max_pool3d, 3),
    F.fractional_max_pool3d_with_indices: _fractional(F.fractional_max_pool3d_with_indices, 3),
    torch.bernoulli: _bernoulli,
    torch.rand: _new(torch.rand, _uniform_values, torch.empty),
    torch.rand_like: _new(torch.rand_like, _uniform_values, torch.empty_like),
    torch.randn: _new(torch.randn, _normal_values, torch.empty),
    torch.randn_like: _new(torch.randn_like, _normal_values, torch.empty_like),
    Tensor.bernoulli_: _in_place(Tensor.bernoulli_, _bernoulli_values),
    Tensor.exponential_: _in_place(Tensor.exponential_, _exponential_values),
    Tensor.normal_: _in_place(Tensor.normal_, _normal_values),
    Tensor.uniform_: _in_place(Tensor.uniform_, _uniform_values),
}
"""Replacements, by the PyTorch function that a network calls."""
