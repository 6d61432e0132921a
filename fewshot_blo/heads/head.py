"""Heads that classify the features of T tasks at once; their weights are inner parameters."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params, TaskParams, sum_tensors
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.heads.losses import one_hot
from fewshot_blo.kernel import Order

Start = Literal["zeros", "prototypes", "closed_form", "learned"]
"""Where the inner problem of a head starts: at zero, at the class means of the support features,
at its solution in closed form, or at outer variables."""


@dataclass(frozen=True)
class SupportSet:
    """What a head learns a task from.

    Attributes:
        features: ``[T, N*K, D]``.
        labels: ``[T, N*K]``, -1 where padded.
        classes: ``[T, N]``, -1 where padded.
    """

    features: Tensor
    labels: Tensor
    classes: Tensor

    @property
    def one_hot(self) -> Tensor:
        """Labels as ``[T, N*K, N]``; a padded row is zero."""
        return one_hot(self.labels, self.classes.shape[1], self.features.dtype)

    @property
    def class_means(self) -> Tensor:
        """Mean feature of each class, ``[T, N, D]``; zero for a padded class."""
        membership = self.one_hot
        counts = membership.sum(1).clamp(min=1)
        return torch.einsum("tbn,tbd->tnd", membership, self.features) / counts.unsqueeze(-1)


def has_class_axis(name: str) -> bool:
    """Whether a parameter of that name has a class axis, ``[T, N, ...]``."""
    return name.startswith("head.")


class Head(ABC):
    """Task-stacked parameters, ``[T, ...]``, the logits they give, and what they minimise.

    Parameters with a class axis, ``[T, N, ...]``, have names that begin with ``head.``.

    Attributes:
        starts: where its inner problem can start, the usual start first.
        prox: usual weight of the proximal term.
        scaled: whether features come divided by √D or by their length, or as the encoder gives
            them.
    """

    starts: ClassVar[tuple[Start, ...]]
    prox: ClassVar[float] = 0.0
    scaled: ClassVar[bool] = True

    def learned(self, features: int | None) -> dict[str, Tensor]:
        """The initial values of what it shares between tasks, outer variables; none by default.

        Args:
            features: D, where it is known.
        """
        del features
        return {}

    @abstractmethod
    def zeros(self, tasks: int, way: int, features: Tensor) -> TaskParams:
        """Parameters of T tasks that are all zero; of features only D and the type count."""

    @abstractmethod
    def from_support(self, support: SupportSet, learned: Params) -> TaskParams:
        """Parameters by a formula of the support set, which is differentiable."""

    @abstractmethod
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

    @abstractmethod
    def loss(self, params: TaskParams, support: SupportSet, learned: Params) -> Tensor:
        """Loss of each task on its support set, ``[T]``."""

    def prepare(self, features: Callable[[], Tensor], derivatives: Order) -> None:
        """Gets ready for features like those of the first batch; nothing by default.

        Args:
            features: returns them, ``[T, B, D]``.
            derivatives: of the parameters that are needed.
        """
        del features, derivatives

    def layers(self, params: TaskParams) -> TaskParams:
        """The parameters that are those of layers, by the layers' own names; none by default."""
        del params
        return {}

    def unadapted(self, features: Tensor) -> Tensor:
        """Features ``[B, E]`` as the head's layers give them before they adapt.

        Args:
            features: as they come, ``[B, D]``; without layers they stay as they are.
        """
        return features

    def class_weights(self, params: TaskParams, support: SupportSet, learned: Params) -> TaskParams:
        """Parameters with a class axis by a formula of the support set, where layers have adapted.

        Args:
            params: of the tasks; of these the layers' play a part.
            support: the support set, of which classes may be new ones.
            learned: the head's outer variables.
        """
        del params
        return self.from_support(support, learned)

    def linear(self, params: TaskParams, learned: Params) -> tuple[Tensor, Tensor]:
        """Weights ``[T, N, D]`` and biases ``[T, N]`` whose logits are the head's, for an export.

        They are those of features of length one that the head's layers have given.

        Raises:
            ConfigurationError: if its logits are not linear in such features.
        """
        del params, learned
        raise ConfigurationError(
            f"the logits of {type(self).__name__} are not linear in features of length one, so it "
            "cannot be exported: use a linear, cosine or ridge head"
        )


class SupportSetHead(Head):
    """A head whose parameters are the support set itself: there is nothing to adapt."""

    starts: ClassVar[tuple[Start, ...]] = ("closed_form",)

    def zeros(self, tasks: int, way: int, features: Tensor) -> TaskParams:
        """An empty support set."""
        return {
            "head.support": features.new_zeros(tasks, 0, features.shape[-1]),
            "head.labels": features.new_zeros(tasks, 0, way),
        }

    def from_support(self, support: SupportSet, learned: Params) -> TaskParams:
        """The support set; a padded row has no label."""
        del learned
        return {"head.support": support.features, "head.labels": support.one_hot}

    def loss(self, params: TaskParams, support: SupportSet, learned: Params) -> Tensor:
        """Zero: adapting changes nothing."""
        del support, learned
        return sum_tensors([0 * p.flatten(1).sum(1) for p in params.values()])


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
