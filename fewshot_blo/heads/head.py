"""Base classes of heads, which classify the features of T tasks by inner parameters."""

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
from fewshot_blo.kernel import Order
from fewshot_blo.objectives.cross_entropy import one_hot

Start = Literal["zeros", "prototypes", "closed_form", "learned"]
"""Where the inner problem of a head starts: at zero, at the class means of the support features,
at its closed-form solution, or at outer variables."""


@dataclass(frozen=True)
class SupportSet:
    """The support sets of T tasks.

    Attributes:
        features: ``[T, N*K, D]``.
        labels: ``[T, N*K]``, -1 where padded; floating-point targets ``[T, B, E]`` of tasks
            without classes.
        classes: ``[T, N]``, -1 where padded; ``[T, 0]`` without classes.
        rows: ``[T, B]``, False for padded rows of tasks without classes; None for no padding.
    """

    features: Tensor
    labels: Tensor
    classes: Tensor
    rows: Tensor | None = None

    @property
    def real(self) -> Tensor:
        """Which rows are real, ``[T, B]``."""
        if self.classes.shape[1]:
            return self.labels >= 0
        every = torch.ones_like(self.features[..., 0], dtype=torch.bool)
        return every if self.rows is None else self.rows

    @property
    def real_classes(self) -> Tensor:
        """Which classes are real, ``[T, N]``; all E entries of the targets without classes."""
        if self.classes.shape[1]:
            return self.classes >= 0
        return torch.ones_like(self.targets[:, 0], dtype=torch.bool)

    @property
    def targets(self) -> Tensor:
        """The targets ``[T, B, E]`` of tasks without classes.

        Raises:
            ConfigurationError: if they have another shape.
        """
        if self.labels.ndim != 3:
            raise ConfigurationError(
                f"targets have shape {list(self.labels.shape)}: a head needs [tasks, rows, "
                "entries], so add a last dimension"
            )
        return self.labels.to(self.features.dtype)

    @property
    def one_hot(self) -> Tensor:
        """One-hot labels ``[T, N*K, N]``; zero for a padded row."""
        return one_hot(self.labels, self.classes.shape[1], self.features.dtype)

    @property
    def class_means(self) -> Tensor:
        """Mean feature of each class, ``[T, N, D]``; zero for a padded class."""
        membership = self.one_hot
        counts = membership.sum(1).clamp(min=1)
        return torch.einsum("tbn,tbd->tnd", membership, self.features) / counts.unsqueeze(-1)


def has_class_axis(name: str) -> bool:
    """Whether the parameter of that name has a class axis, ``[T, N, ...]``."""
    return name.startswith("head.")


class Head(ABC):
    """A classifier of T tasks: its task-stacked parameters, logits and support loss.

    Parameters with a class axis, ``[T, N, ...]``, have names that begin with ``head.``.

    Attributes:
        starts: possible starts of its inner problem, the default first.
        needs_classes: whether tasks must have classes; if not, they must have none, targets are
            ``[T, B, E]``, and E takes the place of N.
        prox: default weight of the proximal term.
        scaled: whether features are divided by √D or by their length before they reach the head;
            if not, the head gets them as the encoder returns them.
    """

    starts: ClassVar[tuple[Start, ...]]
    needs_classes: ClassVar[bool] = True
    prox: ClassVar[float] = 0.0
    scaled: ClassVar[bool] = True

    def learned(self, features: int | None) -> dict[str, Tensor]:
        """Initial values of the head's outer variables, which tasks share; none by default.

        Args:
            features: D, number of features, if known.
        """
        del features
        return {}

    @abstractmethod
    def zeros(self, tasks: int, way: int, features: Tensor) -> TaskParams:
        """Zero parameters of T tasks; ``features`` only give D, dtype and device."""

    @abstractmethod
    def from_support(self, support: SupportSet, learned: Params) -> TaskParams:
        """Parameters as a differentiable function of the support set."""

    @abstractmethod
    def logits(
        self, params: TaskParams, features: Tensor, learned: Params, real: Tensor | None = None
    ) -> Tensor:
        """Logits ``[T, B, N]`` of features ``[T, B, D]``.

        Args:
            params: parameters of the tasks.
            features: features to classify.
            learned: the head's outer variables.
            real: ``[T, B]``, False for padded rows, for heads that classify all rows jointly; None
                if no row is padded.
        """

    @abstractmethod
    def loss(self, params: TaskParams, support: SupportSet, learned: Params) -> Tensor:
        """Loss of each task on its support set, ``[T]``; the inner problem minimises it."""

    def prepare(self, features: Callable[[], Tensor], derivatives: Order) -> None:
        """Prepares the head for features like those of the first batch; nothing by default.

        Args:
            features: returns these features, ``[T, B, D]``.
            derivatives: highest order of derivatives that is needed.
        """
        del features, derivatives

    def layers(self, params: TaskParams) -> TaskParams:
        """The parameters that belong to layers, by the layers' own names; none by default."""
        del params
        return {}

    def unadapted(self, features: Tensor) -> Tensor:
        """Features ``[B, E]`` after the head's layers, before these adapt.

        Args:
            features: input features, ``[B, D]``; returned unchanged without layers.
        """
        return features

    def class_weights(self, params: TaskParams, support: SupportSet, learned: Params) -> TaskParams:
        """Parameters with a class axis from the support set, for layers that have adapted.

        Args:
            params: parameters of the tasks, of which those of layers are used.
            support: the support set; its classes may be new.
            learned: the head's outer variables.
        """
        del params
        return self.from_support(support, learned)

    def linear(self, params: TaskParams, learned: Params) -> tuple[Tensor, Tensor]:
        """Weights ``[T, N, D]`` and biases ``[T, N]`` of the head's logits, for export.

        They apply to features of unit length after the head's layers.

        Raises:
            ConfigurationError: if the logits are not linear in such features.
        """
        del params, learned
        raise ConfigurationError(
            f"the logits of {type(self).__name__} are not linear in features of unit length, so it "
            "cannot be exported: use a linear, cosine or ridge head"
        )


class SupportSetHead(Head):
    """A head whose parameters are the support set itself, with nothing to adapt."""

    starts: ClassVar[tuple[Start, ...]] = ("closed_form",)

    def zeros(self, tasks: int, way: int, features: Tensor) -> TaskParams:
        """An empty support set."""
        return {
            "head.support": features.new_zeros(tasks, 0, features.shape[-1]),
            "head.labels": features.new_zeros(tasks, 0, way),
        }

    def from_support(self, support: SupportSet, learned: Params) -> TaskParams:
        """The support set; the label of a padded row is zero."""
        del learned
        return {"head.support": support.features, "head.labels": support.one_hot}

    def loss(self, params: TaskParams, support: SupportSet, learned: Params) -> Tensor:
        """Zero, ``[T]``: there is nothing to adapt."""
        del support, learned
        return sum_tensors([0 * p.flatten(1).sum(1) for p in params.values()])


def logarithms(**values: float) -> dict[str, Tensor]:
    """``log_<name>`` of positive numbers."""
    return {f"log_{name}": torch.tensor(math.log(value)) for name, value in values.items()}


def normalize(x: Tensor) -> Tensor:
    """``x / |x|``, smooth at zero: ``F.normalize`` has a NaN second derivative there."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-12)
