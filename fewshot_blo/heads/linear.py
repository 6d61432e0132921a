"""Linear and cosine heads, which have one weight vector per class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.heads.head import Head, Start, SupportSet, normalize
from fewshot_blo.objectives.cross_entropy import task_cross_entropy
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Positive


class ClassWeights(Head):
    """A head with one weight vector per class."""

    def zeros(self, tasks: int, way: int, features: Tensor) -> TaskParams:
        """Zero weights ``[T, N, D]``."""
        return {"head.weight": features.new_zeros(tasks, way, features.shape[-1])}


class CrossEntropyHead(ClassWeights):
    """A head that minimises cross-entropy, by default without outer variables."""

    prox: ClassVar[float] = 0.5

    def from_support(self, support: SupportSet, learned: Params) -> TaskParams:
        """The class means as weights."""
        del learned
        return {"head.weight": support.class_means}

    def loss(self, params: TaskParams, support: SupportSet, learned: Params) -> Tensor:
        """Mean cross-entropy, ``[T]``."""
        logits = self.logits(params, support.features, learned)
        return task_cross_entropy(logits, support.labels, support.classes)


class ScaledLinearHead(ClassWeights):
    """A head ``s W x``, where s is an outer variable, learned as a logarithm."""

    def logits(
        self, params: TaskParams, features: Tensor, learned: Params, real: Tensor | None = None
    ) -> Tensor:
        """Scaled scores, ``[T, B, N]``."""
        del real
        return learned["log_scale"].exp() * (features @ params["head.weight"].transpose(1, 2))

    def linear(self, params: TaskParams, learned: Params) -> tuple[Tensor, Tensor]:
        """``s W`` and no bias."""
        weight = learned["log_scale"].exp() * params["head.weight"]
        return weight, torch.zeros_like(weight[..., 0])


@checked
@dataclass(frozen=True)
class LinearHead(CrossEntropyHead):
    """Linear classifier ``W x + b``."""

    starts: ClassVar[tuple[Start, ...]] = ("prototypes", "zeros", "learned")

    def zeros(self, tasks: int, way: int, features: Tensor) -> TaskParams:
        """Zero weights and biases, so equal probabilities for all classes."""
        return {**super().zeros(tasks, way, features), "head.bias": features.new_zeros(tasks, way)}

    def from_support(self, support: SupportSet, learned: Params) -> TaskParams:
        """``w_n = 2 c_n, b_n = -|c_n|²``: logits are minus squared distances, up to a constant.

        Source: Snell et al., "Prototypical Networks" (arXiv 1703.05175), equation 8.
        """
        del learned
        prototypes = support.class_means
        return {"head.weight": 2 * prototypes, "head.bias": -prototypes.square().sum(-1)}

    def logits(
        self, params: TaskParams, features: Tensor, learned: Params, real: Tensor | None = None
    ) -> Tensor:
        """Logits ``W x + b``, ``[T, B, N]``."""
        del learned, real
        weight, bias = params["head.weight"], params["head.bias"]
        return features @ weight.transpose(1, 2) + bias.unsqueeze(1)

    def linear(self, params: TaskParams, learned: Params) -> tuple[Tensor, Tensor]:
        """Its weights and biases."""
        del learned
        return params["head.weight"], params["head.bias"]


@checked
@dataclass(frozen=True)
class CosineHead(CrossEntropyHead):
    """Cosine classifier ``s cos(x, w_n)``.

    Source: Gidaris & Komodakis (arXiv 1804.09458), equation 5.

    Attributes:
        scale: s, factor of the cosines, an inverse temperature.
    """

    scale: Positive = 10.0

    # Not at zeros: a zero weight has no direction.
    starts: ClassVar[tuple[Start, ...]] = ("prototypes", "learned")

    def logits(
        self, params: TaskParams, features: Tensor, learned: Params, real: Tensor | None = None
    ) -> Tensor:
        """Scaled cosines, ``[T, B, N]``."""
        del learned, real
        weight = normalize(params["head.weight"])
        return self.scale * (normalize(features) @ weight.transpose(1, 2))

    def linear(self, params: TaskParams, learned: Params) -> tuple[Tensor, Tensor]:
        """``s w_n / |w_n|`` and no bias."""
        del learned
        weight = self.scale * normalize(params["head.weight"])
        return weight, torch.zeros_like(weight[..., 0])
