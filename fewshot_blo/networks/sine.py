"""``SineNetwork``, linear layers with sines, for signals and other smooth functions."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from fewshot_blo.networks.mlp import Shape, Widths
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Above, AtMost

Frequency = Annotated[float, Above(0), AtMost(1000)]


@checked
class SineNetwork(nn.Module):
    """``sin(ω (W x + b))`` layer after layer; an input is flattened first.

    Source: Sitzmann et al., "Implicit Neural Representations with Periodic Activation Functions"
    (SIREN, arXiv 2006.09661), with the initial weights of section 3.2: ``U(-1/n, 1/n)`` in the
    first layer and ``U(-√(6/n)/ω, √(6/n)/ω)`` in the others, for n inputs of the layer.

    Args:
        shape: shape of one input.
        widths: number of units of each layer.
        frequency: ω of the first layer, in radians per unit of the input.
        later_frequency: ω of the other layers.
    """

    def __init__(
        self,
        *,
        shape: Shape = (1,),
        widths: Widths = (40, 40),
        frequency: Frequency = 30.0,
        later_frequency: Frequency = 30.0,
    ) -> None:
        super().__init__()
        self.width = widths[-1]
        layers, before = [], math.prod(shape)
        for number, width in enumerate(widths):
            omega = later_frequency if number else frequency
            bound = math.sqrt(6 / before) / omega if number else 1 / before
            layers.append(SineLayer(before, width, omega, bound))
            before = width
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Features ``[B, D]`` of inputs ``[B, *shape]``; D is the last width."""
        features: Tensor = self.layers(x.reshape(len(x), math.prod(x.shape[1:])))
        return features


class SineLayer(nn.Module):
    """``sin(ω (W x + b))``, with initial weights in ``[-bound, bound]``."""

    def __init__(self, inputs: int, outputs: int, omega: float, bound: float) -> None:
        super().__init__()
        self.linear, self.omega = nn.Linear(inputs, outputs), omega
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Values in [-1, 1], ``[B, outputs]``, of ``[B, inputs]``."""
        return torch.sin(self.omega * self.linear(x))
