"""Modules as users write them: subclasses, state, hooks, checkpointing, random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.network import WAY, Network

_IMAGE = (3, 8, 8)


def networks() -> list[Network]:
    """One network for each way to write a module."""
    return [Network("own", name, build, _IMAGE) for name, build in _BUILDS.items()]


def _around(layer: nn.Module, channels: int = 4) -> nn.Module:
    first = nn.Conv2d(3, 4, 3, padding=1)
    last = nn.Linear(channels * 64, WAY)
    return nn.Sequential(first, layer, nn.Tanh(), nn.Flatten(), last)


class _NormWithActivation(nn.BatchNorm2d):
    """A subclass whose forward applies an activation."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


class _NormWithParameter(nn.BatchNorm2d):
    """A subclass with a parameter of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.slope = nn.Parameter(torch.full((channels, 1, 1), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return torch.where(x > 0, x, self.slope * x)


class _GhostNorm(nn.BatchNorm2d):
    """A subclass with other statistics: those of half of the images."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2)
        halves: list[Tensor] = [super().forward(first), super().forward(second)]
        return torch.cat(halves)


class _ScaledDropout(nn.Dropout):
    """A dropout that scales its input."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * super().forward(x)


class _Residual(nn.Sequential):
    """A sequence that adds its input."""

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return x + output


class _StandardizedConv(nn.Conv2d):
    """A convolution that standardizes its weights."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, padding=1)


class _Checkpointed(nn.Module):
    """A block with activation checkpointing."""

    def __init__(self, block: nn.Module, *, reentrant: bool = False) -> None:
        super().__init__()
        self.block, self.reentrant = block, reentrant

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = checkpoint(self.block, x, use_reentrant=self.reentrant)
        return result


class _Average(nn.Module):
    """A moving average in a buffer.

    Args:
        in_place: modify the buffer in place instead of assigning a new one.
        used: whether the output depends on the buffer.
    """

    average: Tensor

    def __init__(self, *, in_place: bool, used: bool) -> None:
        super().__init__()
        self.in_place, self.used = in_place, used
        self.register_buffer("average", torch.zeros(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        new = 0.9 * self.average + 0.1 * x.detach().mean((0, 2, 3)).reshape(4, 1, 1)
        if self.in_place:
            self.average.copy_(new)
        else:
            self.average = new
        return x - self.average if self.used else x


class _Counter(nn.Module):
    """A count of the calls in a Python attribute, on which the output depends."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (1 + 0.1 * self.calls)


class _Call(nn.Module):
    """A function of one layer and the input."""

    def __init__(self, layer: nn.Module, call: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x: Tensor) -> Any:
        return self.call(self.layer, x)


class _Tied(nn.Module):
    """One layer with two names, and one weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(4, 4, 3, padding=1)
        self.two = self.one
        self.three = nn.Conv2d(4, 4, 3, padding=1)
        self.three.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.three(self.two(self.one(x).tanh()).tanh())
        return result


def _scaled(gradients: Any, factor: float) -> tuple[Tensor]:
    return (factor * gradients[0],)


def _hooked(kind: str, layer: nn.Module) -> nn.Module:
    """A layer with a hook that changes values or gradients."""
    if kind == "forward":
        layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    elif kind == "forward_pre":
        layer.register_forward_pre_hook(lambda module, inputs: (inputs[0].sin(),))
    elif kind == "full_backward":
        layer.register_full_backward_hook(lambda module, inputs, outputs: _scaled(inputs, 2))
    elif kind == "full_backward_pre":
        layer.register_full_backward_pre_hook(lambda module, outputs: _scaled(outputs, 3))
    return _around(layer)


def _used_weight_norm() -> nn.Module:
    """Old-style weight norm after a forward pass: its weight is not a leaf and is not copied."""
    network = _around(nn.utils.weight_norm(nn.Conv2d(4, 4, 3, padding=1)))
    network(torch.rand(2, *_IMAGE))
    return network


def _frozen() -> nn.Module:
    network = _around(nn.BatchNorm2d(4))
    network.get_submodule("0").requires_grad_(False)
    return network


def _evaluating() -> nn.Module:
    """A batch norm whose ``train`` does nothing: it always uses the running statistics."""
    norm = nn.BatchNorm2d(4)
    norm.train = lambda mode=True: norm  # type: ignore[method-assign]
    return _around(norm.eval())


def _lazy() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(WAY))


def _complex() -> nn.Module:
    layer = nn.Module()
    layer.weight = nn.Parameter(torch.randn(4, 8, 5, dtype=torch.cfloat))
    return _around(
        _Call(layer, lambda layer, x: torch.fft.irfft2(torch.fft.rfft2(x) * layer.weight))
    )


def _norm() -> nn.Module:
    return nn.BatchNorm2d(4)


def _conv() -> nn.Module:
    return nn.Conv2d(4, 4, 3, padding=1)


_BUILDS: dict[str, Callable[[], nn.Module]] = {
    "batch norm subclass with an activation": lambda: _around(_NormWithActivation(4)),
    "batch norm subclass with a parameter": lambda: _around(_NormWithParameter(4)),
    "batch norm subclass with other statistics": lambda: _around(_GhostNorm(4)),
    "dropout subclass that scales": lambda: _around(_ScaledDropout(0.0)),
    "sequential subclass with a residual": lambda: _around(_Residual(_conv(), nn.Tanh())),
    "convolution subclass": lambda: _around(_StandardizedConv(4, 4, 3)),
    "checkpoint": lambda: _around(_Checkpointed(nn.Sequential(_conv(), nn.Tanh(), _conv()))),
    "checkpoint with batch norm": lambda: _around(_Checkpointed(nn.Sequential(_conv(), _norm()))),
    "checkpoint, reentrant": lambda: _around(
        _Checkpointed(nn.Sequential(_conv(), nn.Tanh()), reentrant=True)
    ),
    "buffer changed in place and used": lambda: _around(_Average(in_place=True, used=True)),
    "buffer changed in place": lambda: _around(_Average(in_place=True, used=False)),
    "buffer assigned and used": lambda: _around(_Average(in_place=False, used=True)),
    "buffer assigned": lambda: _around(_Average(in_place=False, used=False)),
    "Python counter": lambda: _around(_Counter()),
    "F.dropout": lambda: _around(_Call(nn.Identity(), lambda layer, x: F.dropout(x, 0.5))),
    "noise": lambda: _around(_Call(nn.Identity(), lambda layer, x: x + 0.1 * torch.randn_like(x))),
    "forward hook on a batch norm": lambda: _hooked("forward", _norm()),
    "forward pre-hook on a batch norm": lambda: _hooked("forward_pre", _norm()),
    "backward hook on a batch norm": lambda: _hooked("full_backward", _norm()),
    "backward pre-hook on a batch norm": lambda: _hooked("full_backward_pre", _norm()),
    "forward hook on a convolution": lambda: _hooked("forward", _conv()),
    "backward hook on a convolution": lambda: _hooked("full_backward", _conv()),
    "backward pre-hook on a convolution": lambda: _hooked("full_backward_pre", _conv()),
    "backward hook on a sequential": lambda: _hooked("full_backward", nn.Sequential(_conv())),
    "weight norm (old) after a forward pass": _used_weight_norm,
    "tied layers and weights": lambda: _around(_Tied()),
    "frozen convolution": _frozen,
    "batch norm that stays in evaluation": _evaluating,
    "lazy layer before its first pass": _lazy,
    "scripted module": lambda: torch.jit.script(_around(_conv())),
    "scripted layer": lambda: _around(torch.jit.script(_conv())),
    "complex parameters": _complex,
    "dictionary output": lambda: _Call(_around(_conv()), lambda layer, x: {"logits": layer(x)}),
    "tuple output": lambda: _Call(_around(_conv()), lambda layer, x: (layer(x), x)),
    "branch on the input's value": lambda: _around(
        _Call(_conv(), lambda layer, x: layer(x) if x.mean() > 0 else -layer(x))
    ),
    "masked assignment": lambda: _around(_Call(_conv(), _masked)),
    "item()": lambda: _around(_Call(_conv(), lambda layer, x: layer(x) * x.detach().mean().item())),
}


def _masked(layer: nn.Module, x: Tensor) -> Tensor:
    result: Tensor = layer(x).clone()
    result[result < 0] = 0.1
    return result
