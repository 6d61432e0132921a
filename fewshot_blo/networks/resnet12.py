"""ResNet-12, the residual encoder of the few-shot literature, and DropBlock."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.networks.norms import Norm, make_norm
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import AtLeast, AtMost, Counting, Decay, Natural, Width

Widths = tuple[Width, Width, Width, Width]

WIDE: Widths = (64, 160, 320, 640)
NARROW: Widths = (64, 128, 256, 512)


@checked
class ResNet12(nn.Module):
    """Four residual blocks of three 3×3 convolutions, each halving the image, then mean pooling.

    Sources: Oreshkin et al., "TADAM" (arXiv 1805.10123); widths, slope, initial weights and
    DropBlock as in the code of Lee et al., "MetaOptNet" (arXiv 1904.03758), global average pooling
    as in that of Tian et al., "Rethinking Few-Shot Image Classification" (arXiv 2003.11539). There
    DropBlock's rate grows during training; here it is constant.

    Args:
        channels: number of channels of the images.
        widths: number of filters of each block; ``WIDE`` and ``NARROW`` are in the literature.
        norm: norm layer after each convolution, as in ``Conv4``.
        drop_block: side of the squares that DropBlock drops in the last two blocks, while the first
            two have dropout; 5 for images of 84×84, 2 for 32×32, 0 for neither.
        drop_rate: fraction of a block's output that is dropped.
        steps: number of inner steps, as in ``Conv4``.

    Raises:
        ConfigurationError: if a width does not fit the norm, the drop settings are out of range, or
            (in ``forward``) images are smaller than 16×16.
    """

    def __init__(
        self,
        *,
        channels: Width = 3,
        widths: Widths = WIDE,
        norm: Norm = "batch",
        drop_block: Natural = 0,
        drop_rate: Decay = 0.1,
        steps: Annotated[int, AtLeast(0), AtMost(1000)] = 0,
    ) -> None:
        super().__init__()
        self.widths = widths
        blocks = []
        for block, (before, width) in enumerate(zip((channels, *widths), widths, strict=False)):
            drop: nn.Module | None = None
            if drop_block:
                drop = nn.Dropout(drop_rate) if block < 2 else DropBlock(drop_block, drop_rate)
            blocks.append((f"block{block + 1}", ResidualBlock(before, width, norm, steps, drop)))
        self.blocks = nn.Sequential(OrderedDict(blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Features ``[B, D]`` of images ``[B, C, H, W]``; H and W are at least 16."""
        if min(x.shape[-2:]) < 16:
            raise ConfigurationError(
                f"ResNet12 halves an image four times; {x.shape[-2]}x{x.shape[-1]} is too small: "
                "use images of at least 16x16"
            )
        maps: Tensor = self.blocks(x)
        return maps.mean((2, 3))

    def features(self, size: int) -> int:
        """D, the number of features of an image of any ``size``."""
        return self.widths[-1]


class ResidualBlock(nn.Module):
    """``drop(pool(relu(residual(x) + shortcut(x))))``."""

    def __init__(
        self, before: int, width: int, norm: Norm, steps: int, drop: nn.Module | None
    ) -> None:
        super().__init__()
        residual: list[tuple[str, nn.Module]] = []
        for number, inputs in ((1, before), (2, width), (3, width)):
            residual += [
                (f"convolution{number}", nn.Conv2d(inputs, width, 3, padding=1, bias=False)),
                (f"norm{number}", make_norm(norm, width, steps)),
                (f"relu{number}", nn.LeakyReLU(0.1)),
            ]
        del residual[-1]  # The last one follows the sum.
        shortcut = [
            ("convolution", nn.Conv2d(before, width, 1, bias=False)),
            ("norm", make_norm(norm, width, steps)),
        ]
        output = [("relu", nn.LeakyReLU(0.1)), ("pool", nn.MaxPool2d(2))]
        if drop is not None:
            output.append(("drop", drop))
        self.residual = nn.Sequential(OrderedDict(residual))
        self.shortcut = nn.Sequential(OrderedDict(shortcut))
        self.output = nn.Sequential(OrderedDict(output))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, width, H // 2, W // 2]`` of maps ``[B, before, H, W]``."""
        maps: Tensor = self.output(self.residual(x) + self.shortcut(x))
        return maps


@checked
class DropBlock(nn.Module):
    """Drops squares of each channel, and rescales what remains of each image.

    The squares are a function of the task's key, like a dropout mask. An image is rescaled by its
    own count of dropped entries, so that it does not depend on the others of its batch.

    Source: Ghiasi et al., "DropBlock" (arXiv 1810.12890), algorithm 1 and equation 1.

    Args:
        size: side of the squares, at most that of the map.
        rate: expected fraction of dropped entries if squares did not overlap.

    Raises:
        ConfigurationError: if the size is not positive, or the rate not in [0, 1).
    """

    def __init__(self, size: Counting, rate: Decay) -> None:
        super().__init__()
        self.size = size
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Drops squares of ``x``, ``[B, C, H, W]``."""
        if not self.training or self.rate == 0:
            return x
        height, width = x.shape[2:]
        size, edge = min(self.size, height, width), min(self.size, height, width) - 1
        # In float32 for any dtype of x: bfloat16 cannot represent the counts.
        corners = torch.ones(*x.shape[:2], height - edge, width - edge, device=x.device)
        share = self.rate * height * width / (size**2 * (height - edge) * (width - edge))
        dropped = (F.dropout(corners, share) == 0).float()
        kept = 1 - F.max_pool2d(F.pad(dropped, (edge, edge, edge, edge)), size, stride=1)
        scale = kept[0].numel() / kept.sum((1, 2, 3), keepdim=True).clamp(min=1)
        return x * (kept * scale).to(x.dtype)
