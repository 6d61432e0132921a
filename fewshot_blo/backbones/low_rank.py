"""Low-rank updates (LoRA) of linear and convolutional layers."""

from __future__ import annotations

import copy
from typing import TypeGuard

import torch
from torch import Tensor, nn

from fewshot_blo.errors import ConfigurationError


class LowRank(nn.Module):
    """Low-rank update ``layer(x) + up(down(x))``; down has ``rank`` outputs, up starts at zero.

    Source: Hu et al., "LoRA" (arXiv 2106.09685), section 4.1; for convolutions down has the
    layer's kernel size and up is a 1×1 convolution.

    Args:
        layer: linear layer, or convolution without groups.
        rank: number of outputs of down.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int) -> None:
        super().__init__()
        self.layer = layer
        self.down: nn.Module
        self.up: nn.Module
        if isinstance(layer, nn.Linear):
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)
        else:
            self.down = nn.Conv2d(
                layer.in_channels,
                rank,
                layer.kernel_size,  # type: ignore[arg-type]
                layer.stride,  # type: ignore[arg-type]
                layer.padding,  # type: ignore[arg-type]
                layer.dilation,  # type: ignore[arg-type]
                bias=False,
            )
            self.up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        self.down.to(layer.weight)
        self.up.to(layer.weight)
        nn.init.zeros_(self.up.weight)

    @property
    def weight(self) -> Tensor:
        """The layer's weight plus its update, for networks that read the weight directly."""
        up, down = self.up.weight, self.down.weight
        assert isinstance(up, Tensor)
        assert isinstance(down, Tensor)
        return self.layer.weight + (up.flatten(1) @ down.flatten(1)).reshape(
            self.layer.weight.shape
        )

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias."""
        return self.layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output plus its update."""
        output: Tensor = self.layer(x) + self.up(self.down(x))
        return output


def with_low_rank(
    network: nn.Module, rank: int, prefixes: tuple[str, ...] = ("",), seed: int = 0
) -> tuple[nn.Module, list[str]]:
    """A copy of a network with low-rank updates, and the names of their parameters.

    Args:
        network: network whose linear layers and convolutions without groups get updates.
        rank: rank of the updates; layers with fewer than 2 rank inputs or outputs get none.
        prefixes: prefixes of the names of layers to update.
        seed: seed of the initial values of down.

    Raises:
        ConfigurationError: if the rank is not positive, or no layer qualifies.
    """
    if rank < 1:
        raise ConfigurationError(f"rank is {rank}: it must be at least 1")
    network = copy.deepcopy(network)
    layers = {
        name: layer
        for name, layer in network.named_modules()
        if f"{name}.".startswith(prefixes) and _suits(layer, rank)
    }
    if not layers:
        raise ConfigurationError(
            f"no layer whose name begins with {' or '.join(map(repr, prefixes))} can have an "
            f"update of rank {rank}: it needs a linear layer or a convolution without groups, with "
            f"at least {2 * rank} inputs and outputs; lower rank or update more blocks"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, layer in layers.items():
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, LowRank(layer, rank))
    return network, [f"{name}.{part}.weight" for name in layers for part in ("down", "up")]


def _suits(layer: nn.Module, rank: int) -> TypeGuard[nn.Linear | nn.Conv2d]:
    if isinstance(layer, nn.Linear):
        return min(layer.in_features, layer.out_features) >= 2 * rank
    if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and layer.groups == 1:
        return min(layer.in_channels, layer.out_channels) >= 2 * rank
    return False
