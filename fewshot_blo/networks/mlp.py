"""``MLP``, linear layers with an activation after each, for inputs of any shape."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Annotated, Literal

from torch import Tensor, nn

from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, NotEmpty, Width

Activation = Literal["relu", "tanh", "gelu", "silu"]
Shape = tuple[Counting, ...]
"""Shape of one input; empty for a single number."""
Widths = Annotated[tuple[Width, ...], NotEmpty()]

_ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


@checked
class MLP(nn.Module):
    """Linear layers, each followed by an activation; an input is flattened first.

    With the default widths and a linear head after it, the network of MAML for sinusoids (arXiv
    1703.03400, section 5.1). The initial weights are those of ``nn.Linear``.

    Args:
        shape: shape of one input.
        widths: number of units of each layer.
        activation: function after each layer.
    """

    def __init__(
        self, *, shape: Shape = (1,), widths: Widths = (40, 40), activation: Activation = "relu"
    ) -> None:
        super().__init__()
        self.width = widths[-1]
        layers: list[tuple[str, nn.Module]] = []
        before = math.prod(shape)
        for number, width in enumerate(widths, 1):
            layers += [
                (f"linear{number}", nn.Linear(before, width)),
                (f"activation{number}", _ACTIVATIONS[activation]()),
            ]
            before = width
        self.layers = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Features ``[B, D]`` of inputs ``[B, *shape]``; D is the last width."""
        features: Tensor = self.layers(x.reshape(len(x), math.prod(x.shape[1:])))
        return features
