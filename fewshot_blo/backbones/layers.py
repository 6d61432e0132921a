"""Replacement layers of pretrained networks: frozen batch norm, attention, hardsigmoid."""

from __future__ import annotations

import copy
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fewshot_blo.errors import ConfigurationError


class FrozenBatchNorm(nn.Module):
    """Batch norm with the statistics of pretraining, in training and evaluation alike.

    A few images do not give better statistics, and so no image's features depend on the others.
    Scale and shift remain parameters.

    Args:
        norm: batch norm whose parameters and statistics are used, with dropout and activation that
            follow inside of timm's norms.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        self.eps = norm.eps
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)
        after = [getattr(norm, name, None) for name in ("drop", "act")]
        self.then = nn.Sequential(*(layer for layer in after if isinstance(layer, nn.Module)))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises ``x``, ``[B, C, ...]``."""
        mean, variance = self.running_mean, self.running_var
        x = x.to(mean.dtype)  # After bfloat16 products; vmap needs the dtype of the statistics.
        x = F.batch_norm(x, mean, variance, self.weight, self.bias, False, eps=self.eps)
        return self.then(x) if len(self.then) else x


class Attention(nn.Module):
    """``nn.MultiheadAttention`` with a linear layer as input projection, without fused kernels.

    So it has second derivatives, ``torch.func.vmap`` can batch it, and low-rank updates apply to
    its input projection.

    Args:
        attention: layer whose parameters are used; query, key and value must have one width.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        width = attention.embed_dim
        self.heads, self.batch_first = attention.num_heads, attention.batch_first
        self.in_proj = nn.Linear(width, 3 * width, bias=attention.in_proj_bias is not None)
        self.in_proj.weight = attention.in_proj_weight
        if attention.in_proj_bias is not None:
            self.in_proj.bias = attention.in_proj_bias
        self.out_proj = nn.Linear(width, width, bias=attention.out_proj.bias is not None)
        self.out_proj.weight, self.out_proj.bias = (
            attention.out_proj.weight,
            attention.out_proj.bias,
        )

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, **options: Any
    ) -> tuple[Tensor, None]:
        """Self-attention output ``[B, L, E]`` (or ``[L, B, E]``), and None for the weights.

        Raises:
            ConfigurationError: if query, key and value differ, or there is a mask.
        """
        masked = any(options.get(name) is not None for name in ("attn_mask", "key_padding_mask"))
        if key is not query or value is not query or masked or options.get("is_causal"):
            raise ConfigurationError("only self-attention without a mask is supported")
        x = query if self.batch_first else query.transpose(0, 1)
        parts = self.in_proj(x).chunk(3, -1)  # By index: torch.fx cannot iterate.
        q, k, v = (
            parts[place].unflatten(-1, (self.heads, -1)).transpose(-2, -3) for place in range(3)
        )
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        output = self.out_proj((weights @ v).transpose(-2, -3).flatten(-2))
        return (output if self.batch_first else output.transpose(0, 1)), None


class Hardsigmoid(nn.Module):
    """``nn.Hardsigmoid``, composed of operations that have second derivatives."""

    def forward(self, x: Tensor) -> Tensor:
        """``min(max(x + 3, 0), 6) / 6``."""
        return (x + 3).clamp(0, 6) / 6


def prepared(network: nn.Module) -> nn.Module:
    """A copy of a pretrained network in ``eval()`` mode, with these layers instead of PyTorch's."""
    return _replace(copy.deepcopy(network).eval())


def _replace(module: nn.Module) -> nn.Module:
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    if isinstance(module, norms) and module.running_mean is not None:
        return FrozenBatchNorm(module)
    if type(module) is nn.Hardsigmoid:
        return Hardsigmoid()
    if (
        isinstance(module, nn.MultiheadAttention)
        and module.in_proj_weight is not None
        and module.bias_k is None
        and not module.add_zero_attn
    ):
        return Attention(module)
    if isinstance(getattr(module, "fused_attn", None), bool):  # timm's
        module.fused_attn = False  # type: ignore[assignment]
    for name, child in module.named_children():
        setattr(module, name, _replace(child))
    return module
