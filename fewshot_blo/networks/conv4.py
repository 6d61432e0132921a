"""Conv4, the four-block convolutional encoder of the few-shot literature."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated

import torch
from torch import Tensor, nn

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.networks.norms import Norm, make_norm
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import AtLeast, AtMost, Width


@checked
class Conv4(nn.Module):
    """Four blocks of 3×3 convolution, norm, ReLU and 2×2 max-pooling, then flattening.

    Source: Vinyals et al., "Matching Networks" (arXiv 1606.04080), section 4.1.2.

    Args:
        channels: number of channels of the images.
        hidden: number of filters of each block: 64 for Omniglot, 32 or 64 for miniImageNet.
        norm: norm layer after each convolution. "batch" and "stepwise" normalise over the images of
            the task as the norm mode says; the others normalise each image by itself.
        steps: number of inner steps with their own scale and shift in a stepwise norm.
        pools: number of leading blocks that end in pooling, 0 to 4. Fewer than 4 leave larger maps,
            for a relation head.

    Raises:
        ConfigurationError: if the number of filters or of steps does not fit the norm, pools is not
            in 0 to 4, or (in ``forward``) images are too small.
    """

    def __init__(
        self,
        *,
        channels: Width = 1,
        hidden: Width = 64,
        norm: Norm = "batch",
        steps: Annotated[int, AtLeast(0), AtMost(1000)] = 0,
        pools: Annotated[int, AtLeast(0), AtMost(4)] = 4,
    ) -> None:
        super().__init__()
        self.hidden, self.pools = hidden, pools
        blocks = []
        for block in range(4):
            convolution = nn.Conv2d(channels if block == 0 else hidden, hidden, 3, padding=1)
            layers = [
                ("convolution", convolution),
                ("norm", make_norm(norm, hidden, steps)),
                ("relu", nn.ReLU()),
                *([("pool", nn.MaxPool2d(2))] if block < pools else []),
            ]
            blocks.append((f"block{block + 1}", nn.Sequential(OrderedDict(layers))))
        self.blocks = nn.Sequential(OrderedDict(blocks))

    def forward(self, x: Tensor) -> Tensor:
        """Features ``[B, D]`` of images ``[B, C, H, W]``; H and W are at least 2^pools."""
        least = 2**self.pools
        if min(x.shape[-2:]) < least:
            raise ConfigurationError(
                f"Conv4 halves an image {self.pools} times; {x.shape[-2]}x{x.shape[-1]} is too "
                f"small: use images of at least {least}x{least}"
            )
        return torch.flatten(self.blocks(x), 1)

    def features(self, size: int) -> int:
        """D, the number of features of an image of ``size`` × ``size`` pixels."""
        side = size >> self.pools
        return self.hidden * side * side
