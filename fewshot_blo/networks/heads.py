"""Heads that classify the features of T tasks at once; their weights are inner parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.networks.losses import one_hot, task_cross_entropy

Start = Literal["zeros", "prototypes", "closed_form", "learned"]
"""Where the inner problem of a head starts: at zero, at the class means of the support features,
at its solution in closed form, or at outer variables."""


class Head(Protocol):
    """Task-stacked parameters, ``[T, N, ...]``, the logits they give, and what they minimise.

    Attributes:
        starts: where its inner problem can start, the usual start first.
        prox: usual weight of the proximal term.
    """

    starts: ClassVar[tuple[Start, ...]]
    prox: ClassVar[float]

    def learned(self, features: int | None) -> dict[str, Tensor]:
        """The initial values of what it shares between tasks: outer variables.

        Args:
            features: D, where it is known.
        """
        ...

    def zeros(self, tasks: int, way: int, features: Tensor) -> TaskParams:
        """Parameters of T tasks that are all zero, ``[T, N, ...]``."""
        ...

    def from_support(
        self, features: Tensor, labels: Tensor, way: int, learned: Params
    ) -> TaskParams:
        """Parameters by a formula of the support set, which is differentiable.

        Args:
            features: ``[T, N*K, D]``.
            labels: ``[T, N*K]``, -1 where padded.
            way: N.
            learned: the head's outer variables.
        """
        ...

    def logits(
        self, params: TaskParams, features: Tensor, learned: Params, real: Tensor | None = None
    ) -> Tensor:
        """Logits ``[T, B, N]`` of features ``[T, B, D]``.

        Args:
            params: of the tasks.
            features: to be classified.
            learned: the head's outer variables.
            real: ``[T, B]``, which rows are no padding, for heads that look at all of them
                together; None for all.
        """
        ...

    def loss(
        self,
        params: TaskParams,
        features: Tensor,
        labels: Tensor,
        classes: Tensor,
        learned: Params,
    ) -> Tensor:
        """Loss of each task on its support set, ``[T]``; classes ``[T, N]`` are -1 where padded."""
        ...


class CrossEntropyHead:
    """A head that minimises cross-entropy and, unless it says otherwise, shares nothing."""

    prox: ClassVar[float] = 0.5

    def learned(self, features: int | None) -> dict[str, Tensor]:
        """None."""
        del features
        return {}

    def logits(
        self, params: TaskParams, features: Tensor, learned: Params, real: Tensor | None = None
    ) -> Tensor:
        raise NotImplementedError

    def loss(
        self,
        params: TaskParams,
        features: Tensor,
        labels: Tensor,
        classes: Tensor,
        learned: Params,
    ) -> Tensor:
        """Mean cross-entropy."""
        return task_cross_entropy(self.logits(params, features, learned), labels, classes)


@dataclass(frozen=True)
class LinearHead(CrossEntropyHead):
    """``W x + b``."""

    starts: ClassVar[tuple[Start, ...]] = ("prototypes", "zeros", "learned")

    def zeros(self, tasks: int, way: int, features: Tensor) -> TaskParams:
        """Equal probabilities for all classes."""
        return {
            "head.weight": features.new_zeros(tasks, way, features.shape[-1]),
            "head.bias": features.new_zeros(tasks, way),
        }

    def from_support(
        self, features: Tensor, labels: Tensor, way: int, learned: Params
    ) -> TaskParams:
        """``w_n = 2 c_n, b_n = -|c_n|²``: logits are minus squared distances, up to a constant.

        Source: Snell et al., "Prototypical Networks" (arXiv 1703.05175), equation 8.
        """
        del learned
        prototypes = class_means(features, labels, way)
        return {
            "head.weight": 2 * prototypes,
            "head.bias": -prototypes.square().sum(-1),
        }

    def logits(
        self, params: TaskParams, features: Tensor, learned: Params, real: Tensor | None = None
    ) -> Tensor:
        """Linear logits."""
        del learned, real
        weight, bias = params["head.weight"], params["head.bias"]
        return features @ weight.transpose(1, 2) + bias.unsqueeze(1)


@dataclass(frozen=True)
class CosineHead(CrossEntropyHead):
    """``s cos(x, w_n)``.

    Source: Gidaris & Komodakis (arXiv 1804.09458), equation 5.

    Attributes:
        scale: s, the inverse temperature.
    """

    scale: float = 10.0

    # Zero weights have no direction.
    starts: ClassVar[tuple[Start, ...]] = ("prototypes", "learned")

    def zeros(self, tasks: int, way: int, features: Tensor) -> TaskParams:
        """All-zero weights; they have no direction, so nothing can start from them."""
        return {"head.weight": features.new_zeros(tasks, way, features.shape[-1])}

    def from_support(
        self, features: Tensor, labels: Tensor, way: int, learned: Params
    ) -> TaskParams:
        """The class means as weights."""
        del learned
        return {"head.weight": class_means(features, labels, way)}

    def logits(
        self, params: TaskParams, features: Tensor, learned: Params, real: Tensor | None = None
    ) -> Tensor:
        """Scaled cosines."""
        del learned, real
        weight = normalize(params["head.weight"])
        return self.scale * (normalize(features) @ weight.transpose(1, 2))


@dataclass(frozen=True)
class RidgeHead:
    """``s W x``, where W minimises ``|X W' - Y|²/2 + λ |W|²/2`` for one-hot labels Y.

    s and λ are outer variables, learned as logarithms. The minimiser has a closed form, and so an
    exact hypergradient with no inner step.

    Source: Bertinetto et al., "R2D2" (arXiv 1805.08136), equations 4 to 7.

    Attributes:
        scale: initial s.
        lam: initial λ.
    """

    scale: float = 10.0
    lam: float = 1.0

    starts: ClassVar[tuple[Start, ...]] = ("closed_form", "zeros", "learned")
    prox: ClassVar[float] = 0.0

    def learned(self, features: int | None) -> dict[str, Tensor]:
        """Logarithms of s and λ."""
        del features
        return logarithms(scale=self.scale, lam=self.lam)

    def zeros(self, tasks: int, way: int, features: Tensor) -> TaskParams:
        """All-zero weights."""
        return {"head.weight": features.new_zeros(tasks, way, features.shape[-1])}

    def from_support(
        self, features: Tensor, labels: Tensor, way: int, learned: Params
    ) -> TaskParams:
        """``W' = X' (X X' + λ I)^-1 Y``: a system of the size of the support set."""
        real = (labels >= 0).unsqueeze(-1)
        x, y = features * real, one_hot(labels, way, features.dtype)
        identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        kernel = x @ x.transpose(1, 2) + learned["log_lam"].exp() * identity
        return {"head.weight": torch.linalg.solve(kernel, y).transpose(1, 2) @ x}

    def logits(
        self, params: TaskParams, features: Tensor, learned: Params, real: Tensor | None = None
    ) -> Tensor:
        """Scaled predictions of the one-hot labels."""
        del real
        return learned["log_scale"].exp() * (features @ params["head.weight"].transpose(1, 2))

    def loss(
        self,
        params: TaskParams,
        features: Tensor,
        labels: Tensor,
        classes: Tensor,
        learned: Params,
    ) -> Tensor:
        """The regularised squares that W minimises; padded classes are in none."""
        weight = params["head.weight"] * (classes >= 0).unsqueeze(2)
        real = (labels >= 0).unsqueeze(-1)
        error = features @ weight.transpose(1, 2) - one_hot(labels, weight.shape[1], weight.dtype)
        squares = (error * real).square().sum((1, 2))
        return 0.5 * squares + 0.5 * learned["log_lam"].exp() * weight.square().sum((1, 2))


def logarithms(**values: float) -> dict[str, Tensor]:
    """``log_<name>`` of positive numbers.

    Raises:
        ConfigurationError: if one is not positive.
    """
    for name, value in values.items():
        if value <= 0:
            raise ConfigurationError(
                f"{name} is {value}: it must be positive, for its logarithm is learned"
            )
    return {f"log_{name}": torch.tensor(math.log(value)) for name, value in values.items()}


def normalize(x: Tensor) -> Tensor:
    """``x / |x|``, smooth at zero: ``F.normalize`` has a NaN second derivative there."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-12)


def class_means(features: Tensor, labels: Tensor, way: int) -> Tensor:
    """Mean feature of each class, ``[T, N, D]``; zero for a padded class.

    Args:
        features: ``[T, B, D]``.
        labels: ``[T, B]``, -1 where padded.
        way: N.
    """
    membership = one_hot(labels, way, features.dtype)
    counts = membership.sum(1).clamp(min=1)
    return torch.einsum("tbn,tbd->tnd", membership, features) / counts.unsqueeze(-1)
