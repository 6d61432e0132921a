"""Heads that classify the features of T tasks at once; their weights are inner parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot_blo.bilevel import TaskParams


class Head(Protocol):
    """Task-stacked parameters, ``[T, N, ...]``, and the logits they give."""

    def zeros(self, tasks: int, way: int, features: Tensor) -> TaskParams:
        """Parameters of T tasks that are all zero, ``[T, N, ...]``."""
        ...

    def from_prototypes(self, prototypes: Tensor) -> TaskParams:
        """Parameters that classify by the class means ``[T, N, D]``."""
        ...

    def logits(self, params: TaskParams, features: Tensor) -> Tensor:
        """Logits ``[T, B, N]`` of features ``[T, B, D]``."""
        ...


@dataclass(frozen=True)
class LinearHead:
    """``W x + b``."""

    def zeros(self, tasks: int, way: int, features: Tensor) -> TaskParams:
        """Equal probabilities for all classes."""
        return {
            "head.weight": features.new_zeros(tasks, way, features.shape[-1]),
            "head.bias": features.new_zeros(tasks, way),
        }

    def from_prototypes(self, prototypes: Tensor) -> TaskParams:
        """``w_n = 2 c_n, b_n = -|c_n|²``: logits are minus squared distances, up to a constant.

        Source: Snell et al., "Prototypical Networks" (arXiv 1703.05175), equation 8.
        """
        return {
            "head.weight": 2 * prototypes,
            "head.bias": -prototypes.square().sum(-1),
        }

    def logits(self, params: TaskParams, features: Tensor) -> Tensor:
        """Linear logits."""
        weight, bias = params["head.weight"], params["head.bias"]
        return features @ weight.transpose(1, 2) + bias.unsqueeze(1)


@dataclass(frozen=True)
class CosineHead:
    """``s cos(x, w_n)``.

    Source: Gidaris & Komodakis (arXiv 1804.09458), equation 5.

    Attributes:
        scale: s, the inverse temperature.
    """

    scale: float = 10.0

    def zeros(self, tasks: int, way: int, features: Tensor) -> TaskParams:
        """All-zero weights; they have no direction, so nothing can start from them."""
        return {"head.weight": features.new_zeros(tasks, way, features.shape[-1])}

    def from_prototypes(self, prototypes: Tensor) -> TaskParams:
        """The class means as weights."""
        return {"head.weight": prototypes}

    def logits(self, params: TaskParams, features: Tensor) -> Tensor:
        """Scaled cosines."""
        weight = _normalize(params["head.weight"])
        return self.scale * (_normalize(features) @ weight.transpose(1, 2))


def _normalize(x: Tensor) -> Tensor:
    """``x / |x|``, smooth at zero: ``F.normalize`` has a NaN second derivative there."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-12)


def class_means(features: Tensor, labels: Tensor, way: int) -> Tensor:
    """Mean feature of each class, ``[T, N, D]``; zero for a padded class.

    Args:
        features: ``[T, B, D]``.
        labels: ``[T, B]``, -1 where padded.
        way: N.
    """
    membership = F.one_hot(labels.clamp(min=0), way) * (labels >= 0).unsqueeze(-1)
    membership = membership.to(features.dtype)
    counts = membership.sum(1).clamp(min=1)
    return torch.einsum("tbn,tbd->tnd", membership, features) / counts.unsqueeze(-1)
