"""Linear regression for T tasks at once, by inner steps on any loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.heads.head import Start, SupportSet
from fewshot_blo.heads.regression import RegressionHead
from fewshot_blo.objectives import AnyLoss, MeanSquaredError, as_metric
from fewshot_blo.objectives.metric import one_a_task
from fewshot_blo.records.checked import checked


@checked
@dataclass(frozen=True)
class LinearRegressionHead(RegressionHead):
    """Linear outputs ``W x + b`` that minimise a loss of targets ``[T, B, E]``.

    For tasks without classes; the start "prototypes" is the mean target. ``RidgeRegressionHead``
    has a closed form for squared errors.

    Attributes:
        loss_function: loss on the support set; also a function of your own,
            ``(outputs, targets, rows) -> [T]``.
    """

    loss_function: AnyLoss = MeanSquaredError()

    starts: ClassVar[tuple[Start, ...]] = ("zeros", "prototypes", "learned")
    prox: ClassVar[float] = 0.1

    def from_support(self, support: SupportSet, learned: Params) -> TaskParams:
        """Zero weights, and the mean target of the support set as bias."""
        del learned
        real = support.real.unsqueeze(-1)
        mean = torch.where(real, support.targets, 0).sum(1) / real.sum(1)
        tasks, entries = mean.shape
        return {**self.zeros(tasks, entries, support.features), "head.bias": mean}

    def loss(self, params: TaskParams, support: SupportSet, learned: Params) -> Tensor:
        """Its loss of the outputs, ``[T]``.

        Raises:
            ConfigurationError: if it does not return one number a task.
        """
        outputs = self.logits(params, support.features, learned)
        metric = as_metric(self.loss_function)
        found = metric(outputs, support.targets, support.real)
        # One number for all tasks would divide their gradients by how many there are.
        return one_a_task(metric.name, found, len(outputs))
