"""Linear regression for T tasks at once, by inner steps on any loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.heads.head import Head, Start, SupportSet
from fewshot_blo.objectives import AnyLoss, MeanSquaredError, as_metric
from fewshot_blo.records.checked import checked


@checked
@dataclass(frozen=True)
class LinearRegressionHead(Head):
    """Linear outputs ``W x + b`` that minimise a loss of targets ``[T, B, E]``.

    For tasks without classes; the start "prototypes" is the mean target. ``RidgeRegressionHead``
    has a closed form for squared errors.

    Attributes:
        loss_function: loss on the support set; also a function of your own,
            ``(outputs, targets, rows) -> [T]``.
    """

    loss_function: AnyLoss = MeanSquaredError()

    starts: ClassVar[tuple[Start, ...]] = ("zeros", "prototypes", "learned")
    needs_classes: ClassVar[bool] = False
    prox: ClassVar[float] = 0.1

    def zeros(self, tasks: int, way: int, features: Tensor) -> TaskParams:
        """Zero weights ``[T, E, D]`` and biases ``[T, E]``."""
        weight = features.new_zeros(tasks, way, features.shape[-1])
        return {"head.weight": weight, "head.bias": features.new_zeros(tasks, way)}

    def from_support(self, support: SupportSet, learned: Params) -> TaskParams:
        """Zero weights, and the mean target of the support set as bias."""
        del learned
        real = support.real.unsqueeze(-1)
        bias = torch.where(real, support.targets, 0).sum(1) / real.sum(1)
        features = support.features
        return {
            "head.weight": features.new_zeros(len(bias), bias.shape[1], features.shape[2]),
            "head.bias": bias,
        }

    def logits(
        self, params: TaskParams, features: Tensor, learned: Params, real: Tensor | None = None
    ) -> Tensor:
        """Outputs ``W x + b``, ``[T, B, E]``."""
        del learned, real
        return features @ params["head.weight"].transpose(1, 2) + params["head.bias"].unsqueeze(1)

    def loss(self, params: TaskParams, support: SupportSet, learned: Params) -> Tensor:
        """Its loss of the outputs, ``[T]``."""
        outputs = self.logits(params, support.features, learned)
        return as_metric(self.loss_function)(outputs, support.targets, support.real)
