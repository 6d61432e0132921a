"""Relation Network: classification by a learned comparison with the class means."""

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
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, Width


@checked
@dataclass(frozen=True)
class RelationHead(CrossEntropyHead):
    """Relation Network: a convolutional network scores each pair of class mean and query.

    Its parameters are outer variables: two blocks of convolution, norm, ReLU and 2×2 max-pooling on
    the concatenated feature maps, then two linear layers. Maps of one pixel are not pooled.

    Source: Sung et al., "Relation Network" (arXiv 1711.06025), figure 3. There the score is a
    sigmoid trained with squared errors, with batch norm over all pairs; here scores are logits
    trained with cross-entropy and each pair is normalised by itself, so that no score depends on
    the other queries.

    Attributes:
        channels: C, number of channels of the maps ``[C, S, S]`` that were flattened to D features;
            None for C = D.
        hidden: number of filters of each block.
        units: number of units of the hidden linear layer.
    """

    channels: Counting | None = None
    hidden: Width = 64
    units: Width = 8

    starts: ClassVar[tuple[Start, ...]] = ("closed_form",)
    prox: ClassVar[float] = 0.0

    def learned(self, features: int | None) -> dict[str, Tensor]:
        """The network's initial parameters, scaled so that activations keep their variance.

        Raises:
            ConfigurationError: if features are not given, or are not square maps of that many
                channels.
        """
        if features is None:
            raise ConfigurationError("RelationHead needs features, the number of features D")
        channels = self.channels or features
        side = math.isqrt(features // channels)
        if channels * side**2 != features:
            raise ConfigurationError(
                f"{features} features are not square maps of {channels} channels: set channels to "
                "those of the maps that the encoder flattens"
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
        """Scores of all pairs, ``[T, B, N]``."""
        del real
        of_class = _convolved(params["head.weight"], learned["of_class"])
        of_query = _convolved(features, learned["of_query"])
        # A convolution of concatenated maps is a sum of two, each computed once per class or query.
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
