"""Classification by a learned comparison with the class means."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.heads.head import Start
from fewshot_blo.heads.linear import CrossEntropyHead


@dataclass(frozen=True)
class RelationHead(CrossEntropyHead):
    """A convolutional network scores a class mean and a query side by side; it is outer variables.

    Two blocks of convolution, norm, ReLU and 2×2 max-pooling on the feature maps of both, then two
    linear layers. Maps of one pixel, as features without ``channels`` are, are not pooled.

    Source: Sung et al., "Relation Network" (arXiv 1711.06025), figure 3. There the score is a
    sigmoid trained by squared errors and the norm batch norm over all pairs; here scores are logits
    trained by cross-entropy and each pair is normalised by itself, so that no score depends on the
    other queries.

    Attributes:
        channels: C, number of channels of the feature maps ``[C, S, S]`` that features are; None
            for C = D.
        hidden: number of filters of each block.
        units: number of units of the hidden linear layer.
    """

    channels: int | None = None
    hidden: int = 64
    units: int = 8

    starts: ClassVar[tuple[Start, ...]] = ("closed_form",)
    prox: ClassVar[float] = 0.0

    def learned(self, features: int | None) -> dict[str, Tensor]:
        """The network's parameters, drawn so that activations keep their size.

        Raises:
            ConfigurationError: if features are not given, or are no square maps of so many
                channels.
        """
        if features is None:
            raise ConfigurationError("a relation head needs features, the number D of them")
        channels = self.channels or features
        side = math.isqrt(features // channels)
        if channels * side**2 != features:
            raise ConfigurationError(
                f"{features} features are no square maps of {channels} channels: relation heads "
                "compare the maps of an encoder that flattens them"
            )
        hidden, pooled = self.hidden, max(side // 2, 1)
        k1, k2 = (1 if size == 1 else 3 for size in (side, pooled))
        last = hidden * max(pooled // 2, 1) ** 2
        return {
            "of_class": _drawn(2 * channels * k1**2, hidden, channels, k1, k1),
            "of_query": _drawn(2 * channels * k1**2, hidden, channels, k1, k1),
            "second": _drawn(hidden * k2**2, hidden, hidden, k2, k2),
            **{f"gain{block}": torch.ones(hidden) for block in (1, 2)},
            **{f"shift{block}": torch.zeros(hidden) for block in (1, 2)},
            "units": _drawn(last, self.units, last),
            "bias": torch.zeros(self.units),
            "score": torch.randn(self.units) / self.units**0.5,
        }

    def logits(
        self, params: TaskParams, features: Tensor, learned: Params, real: Tensor | None = None
    ) -> Tensor:
        """The scores."""
        del real
        of_class = _convolved(params["head.weight"], learned["of_class"])
        of_query = _convolved(features, learned["of_query"])
        # A convolution of maps side by side is a sum of two, each made once a class or query.
        pairs = of_class.unsqueeze(1) + of_query.unsqueeze(2)
        x = _block(pairs.flatten(0, 2), learned["gain1"], learned["shift1"])
        x = F.conv2d(x, learned["second"], padding="same")
        x = _block(x, learned["gain2"], learned["shift2"]).flatten(1)
        scores: Tensor = (x @ learned["units"].T + learned["bias"]).relu() @ learned["score"]
        return scores.reshape(pairs.shape[:3])


def _drawn(fan_in: int, *shape: int) -> Tensor:
    return torch.randn(shape) * math.sqrt(2 / fan_in)


def _convolved(features: Tensor, weight: Tensor) -> Tensor:
    """Maps ``[T, B, H, S, S]`` of features ``[T, B, D]``."""
    side = math.isqrt(features.shape[-1] // weight.shape[1])
    maps = features.reshape(-1, weight.shape[1], side, side)
    convolved = F.conv2d(maps, weight, padding="same")
    return convolved.reshape(*features.shape[:2], *convolved.shape[1:])


def _block(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    x = F.group_norm(x, 1, gain, shift).relu()
    return F.max_pool2d(x, 2) if x.shape[-1] > 1 else x
