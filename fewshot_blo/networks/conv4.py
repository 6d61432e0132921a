"""Conv4, the four-block convolutional encoder of the few-shot literature."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.networks.norms import Norm, make_norm
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import AtLeast, AtMost, Width

Downsampling = Literal["pool", "stride"]


@checked
class Conv4(nn.Module):
    """Four blocks of 3×3 convolution, norm, ReLU and 2×2 max-pooling, then flattening.

    Source: Vinyals et al., "Matching Networks" (arXiv 1606.04080), section 4.1.2. With strides
    instead of pooling it is the Omniglot network of MAML (Finn et al., arXiv 1703.03400, section
    5.2), Reptile and iMAML, which takes about a quarter of the multiplications.

    Args:
        channels: number of channels of the images.
        hidden: number of filters of each block: 64 for Omniglot, 32 or 64 for miniImageNet.
        norm: norm layer after each convolution. "batch" and "stepwise" normalise over the images of
            the task as the norm mode says; the others normalise each image by itself.
        steps: number of inner steps with their own scale and shift in a stepwise norm.
        pools: number of leading blocks that halve their maps, 0 to 4. Fewer than 4 leave larger
            maps, for a relation head.
        downsampling: what halves the maps: "pool" is max-pooling at the end of a block, which drops
            an odd row and column; "stride" a stride of 2 of its convolution, which keeps them:
            28×28 pixels become 2×2.
        mean: whether features are means over the last maps, as in MAML's network for Omniglot,
            instead of all their entries.

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
        downsampling: Downsampling = "pool",
        mean: bool = False,
    ) -> None:
        super().__init__()
        self.hidden, self.pools, self.mean = hidden, pools, mean
        self.strided = downsampling == "stride"
        blocks = []
        for block in range(4):
            halves = block < pools
            stride = 2 if halves and self.strided else 1
            before = channels if block == 0 else hidden
            layers = [
                ("convolution", nn.Conv2d(before, hidden, 3, stride, padding=1)),
                ("norm", make_norm(norm, hidden, steps)),
                ("relu", nn.ReLU()),
                *([("pool", nn.MaxPool2d(2))] if halves and not self.strided else []),
            ]
            blocks.append((f"block{block + 1}", nn.Sequential(OrderedDict(layers))))
        self.blocks = nn.Sequential(OrderedDict(blocks))

    def forward(self, x: Tensor) -> Tensor:
        """Features ``[B, D]`` of images ``[B, C, H, W]``.

        With pooling H and W are at least 2^pools.
        """
        least = 1 if self.strided else 2**self.pools
        if min(x.shape[-2:]) < least:
            raise ConfigurationError(
                f"Conv4 halves an image {self.pools} times; {x.shape[-2]}x{x.shape[-1]} is too "
                f"small: use images of at least {least}x{least}"
            )
        maps = self.blocks(x)
        return maps.mean((2, 3)) if self.mean else torch.flatten(maps, 1)

    def features(self, size: int) -> int:
        """D, the number of features of an image of ``size`` × ``size`` pixels."""
        # Strides round up, pooling down.
        side = -(-size // 2**self.pools) if self.strided else size >> self.pools
        return self.hidden * (1 if self.mean else side * side)
