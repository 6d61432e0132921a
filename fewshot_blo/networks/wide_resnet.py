"""Wide ResNet, the wide residual encoder of the few-shot literature."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.networks.norms import Norm, make_norm
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import AtLeast, AtMost, Decay, Width


@checked
class WideResNet(nn.Module):
    """A convolution, three stages of pre-activation residual blocks, norm, ReLU, average pooling.

    The stages have 16, 32 and 64 filters times ``widen``; the second and third halve the image.

    Source: Zagoruyko & Komodakis, "Wide Residual Networks" (arXiv 1605.07146); depth 28 and width
    10 for few-shot learning: Rusu et al., "LEO" (arXiv 1807.05960), Mangla et al., "S2M2" (arXiv
    1907.12087).

    Args:
        channels: number of channels of the images.
        depth: number of convolutions besides the shortcuts: 10, 16, 22, 28, ...
        widen: factor of the number of filters.
        norm: norm layer before each convolution, as in ``Conv4``.
        drop_rate: rate of the dropout between the convolutions of a block; 0 for none.
        steps: number of inner steps, as in ``Conv4``.

    Raises:
        ConfigurationError: if the depth is not 6 n + 4, n ≥ 1, or a width does not fit the norm.
    """

    def __init__(
        self,
        *,
        channels: Width = 3,
        depth: Annotated[int, AtMost(1000)] = 28,
        widen: Annotated[int, AtLeast(1), AtMost(64)] = 10,
        norm: Norm = "batch",
        drop_rate: Decay = 0.0,
        steps: Annotated[int, AtLeast(0), AtMost(1000)] = 0,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ConfigurationError(
                f"depth is {depth}: it must be 6 n + 4, such as 10, 16, 22, 28, 34 or 40"
            )
        self.width = 64 * widen
        layers: list[tuple[str, nn.Module]] = [
            ("convolution", nn.Conv2d(channels, 16, 3, padding=1, bias=False))
        ]
        before = 16
        for stage, width in enumerate((16 * widen, 32 * widen, 64 * widen)):
            for block in range((depth - 4) // 6):
                stride = 2 if stage and not block else 1
                name = f"stage{stage + 1}_block{block + 1}"
                layers.append((name, WideBlock(before, width, stride, norm, drop_rate, steps)))
                before = width
        layers += [("norm", make_norm(norm, before, steps)), ("relu", nn.ReLU())]
        self.layers = nn.Sequential(OrderedDict(layers))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Features ``[B, D]`` of images ``[B, C, H, W]``."""
        maps: Tensor = self.layers(x)
        return maps.mean((2, 3))

    def features(self, size: int) -> int:
        """D, the number of features of an image of any ``size``."""
        del size
        return self.width


class WideBlock(nn.Module):
    """``shortcut(x) + residual(x)``, with a norm and a ReLU before each convolution."""

    def __init__(
        self, before: int, width: int, stride: int, norm: Norm, drop_rate: float, steps: int
    ) -> None:
        super().__init__()
        self.norm = make_norm(norm, before, steps)
        residual: list[tuple[str, nn.Module]] = [
            ("convolution1", nn.Conv2d(before, width, 3, stride, padding=1, bias=False)),
            ("norm", make_norm(norm, width, steps)),
            ("relu", nn.ReLU()),
        ]
        if drop_rate:
            residual.append(("drop", nn.Dropout(drop_rate)))
        residual.append(("convolution2", nn.Conv2d(width, width, 3, padding=1, bias=False)))
        self.residual = nn.Sequential(OrderedDict(residual))
        self.shortcut = (
            nn.Identity()
            if before == width and stride == 1
            else nn.Conv2d(before, width, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, width, H / stride, W / stride]`` of maps ``[B, before, H, W]``."""
        active = F.relu(self.norm(x))
        # A shortcut that changes shape sees the activation too, as in the authors' code.
        skipped = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(active)
        maps: Tensor = skipped + self.residual(active)
        return maps
