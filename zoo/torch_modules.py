"""Networks around layers of ``torch.nn`` that do not map one tensor to one tensor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from zoo.network import WAY

_TOKENS = 7


class Apply(nn.Module):
    """A layer with its own calling convention."""

    def __init__(self, layer: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x: Tensor) -> Tensor:
        """The output of ``call(layer, x)``."""
        return self.call(self.layer, x)


class Unpool(nn.Module):
    """Max pooling followed by max unpooling."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.pool = getattr(nn, f"MaxPool{dimensions}d")(2, return_indices=True)
        self.unpool = getattr(nn, f"MaxUnpool{dimensions}d")(2)

    def forward(self, x: Tensor) -> Tensor:
        """The maxima at their places; all other entries are zero."""
        pooled, indices = self.pool(x)
        result: Tensor = self.unpool(pooled.tanh(), indices, output_size=x.shape)
        return result


class FromTokens(nn.Module):
    """An embedding of pixels as tokens, and a classifier."""

    def __init__(self, layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.layer, self.last = layer(), nn.Linear(30, WAY)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of ``x``, ``[B, 6]``."""
        result: Tensor = self.last(self.layer(tokens(x)).flatten(1).tanh())
        return result


def tokens(x: Tensor) -> Tensor:
    """Tokens 0 to 6 of pixels in [0, 1]."""
    return (x * _TOKENS).long().clamp(0, _TOKENS - 1)


class Bag(nn.Module):
    """An embedding bag of pixels as tokens, and a classifier."""

    def __init__(self, mode: str, padding_idx: int | None) -> None:
        super().__init__()
        self.layer = nn.EmbeddingBag(_TOKENS, 5, mode=mode, padding_idx=padding_idx)
        self.last = nn.Linear(5, WAY)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of ``x``, ``[B, 6]``."""
        result: Tensor = self.last(self.layer(tokens(x)).tanh())
        return result


class Sequence(nn.Module):
    """A recurrent layer and a classifier of its last output."""

    def __init__(self, layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.layer, self.last = layer(), nn.LazyLinear(WAY)
        with torch.no_grad():
            self(torch.rand(2, 5, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of ``x``, ``[B, 5, 3]``."""
        result: Tensor = self.last(self.layer(x)[0][:, -1])
        return result


class Cell(nn.Module):
    """A recurrent cell, called step by step."""

    def __init__(self, cell: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.cell, self.last = cell(), nn.Linear(4, WAY)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of ``x``, ``[B, 5, 3]``."""
        state = None
        for column in x.unbind(1):
            state = self.cell(column, state)
        hidden = state[0] if isinstance(state, tuple) else state
        result: Tensor = self.last(hidden)
        return result


class SelfAttention(nn.Module):
    """Attention over a sequence, with a mask."""

    def __init__(self, *, need_weights: bool) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(8, 2, batch_first=True)
        self.last, self.need_weights = nn.Linear(8, WAY), need_weights

    def forward(self, x: Tensor) -> Tensor:
        """Logits of ``x``, ``[B, 5, 8]``."""
        mask = torch.ones(5, 5, dtype=torch.bool, device=x.device).triu(1)
        output, _ = self.layer(x, x, x, need_weights=self.need_weights, attn_mask=mask)
        result: Tensor = self.last(output.mean(1))
        return result


class WithContext(nn.Module):
    """A transformer, optionally with a second sequence."""

    def __init__(self, layer: nn.Module, *, context: bool) -> None:
        super().__init__()
        self.layer, self.context, self.last = layer, context, nn.Linear(8, WAY)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of ``x``, ``[B, 5, 8]``."""
        output = self.layer(x, x.flip(1)) if self.context else self.layer(x)
        result: Tensor = self.last(output.mean(1))
        return result


class BilinearPair(nn.Module):
    """A bilinear layer on the input and the reversed input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Bilinear(width, width, 5)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 5]``."""
        result: Tensor = self.layer(x, x.flip(1))
        return result


class Distance(nn.Module):
    """Distances or similarities to three learned points."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.points = layer, nn.Parameter(torch.randn(WAY, 8))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 3]``."""
        result: Tensor = self.layer(x.unsqueeze(1), self.points)
        return result


class Containers(nn.Module):
    """Layers and parameters in PyTorch's containers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.named = nn.ModuleDict({"gelu": nn.GELU(), "linear": nn.Linear(width, width)})
        self.scales = nn.ParameterList([torch.rand(width) for _ in range(2)])
        self.shifts = nn.ParameterDict({"one": nn.Parameter(torch.rand(width))})

    def forward(self, x: Tensor) -> Tensor:
        """``[B, width]``."""
        for layer, scale in zip(self.layers, self.scales, strict=True):
            x = layer(x) * scale + self.shifts["one"]
        result: Tensor = self.named["linear"](self.named["gelu"](x))
        return result


def log_probabilities(layer: Callable[[], nn.Module]) -> nn.Module:
    """A network with an adaptive softmax as its classifier."""

    def call(layer: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(layer, nn.AdaptiveLogSoftmaxWithLoss)
        return layer.log_prob(x)

    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), Apply(layer(), call))
