"""Losses and metrics of regression: squared, absolute and Huber errors, and R²."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot_blo.objectives.metric import Metric, check_shapes, mean_of_rows
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Positive


@checked
@dataclass(frozen=True)
class MeanSquaredError(Metric):
    """Mean squared difference of outputs and targets over a task's rows and their entries."""

    def __call__(self, outputs: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        """Of outputs and targets of one shape, ``[T, B, ...]``."""
        check_shapes("the mean squared error", outputs, targets)
        return mean_of_rows((outputs - targets.to(outputs)).square(), rows)


@checked
@dataclass(frozen=True)
class MeanAbsoluteError(Metric):
    """Mean absolute difference of outputs and targets over a task's rows and their entries."""

    def __call__(self, outputs: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        """Of outputs and targets of one shape, ``[T, B, ...]``."""
        check_shapes("the mean absolute error", outputs, targets)
        return mean_of_rows((outputs - targets.to(outputs)).abs(), rows)


@checked
@dataclass(frozen=True)
class Huber(Metric):
    """Huber's loss: half the squared error up to ``delta``, and linear beyond.

    Attributes:
        delta: absolute error from which on the loss is linear, positive.
    """

    delta: Positive = 1.0

    def __call__(self, outputs: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        """Of outputs and targets of one shape, ``[T, B, ...]``."""
        check_shapes("Huber's loss", outputs, targets)
        losses = F.huber_loss(outputs, targets.to(outputs), reduction="none", delta=self.delta)
        return mean_of_rows(losses, rows)


@checked
@dataclass(frozen=True)
class R2(Metric):
    """Coefficient of determination of each task, ``1 - Σ (y - f)² / Σ (y - mean y)²``.

    NaN for a task whose targets are all equal.
    """

    higher_is_better: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """R2."""
        return "R2"

    def __call__(self, outputs: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        """Of outputs and targets of one shape; all entries of a row count alike."""
        check_shapes("R²", outputs, targets)
        y = targets.reshape(*rows.shape, -1).to(outputs)
        mean = torch.where(rows.unsqueeze(2), y, 0).sum(1) / rows.sum(1, keepdim=True)
        error = mean_of_rows((outputs.reshape(y.shape) - y).square(), rows)
        spread = mean_of_rows((y - mean.unsqueeze(1)).square(), rows)
        # Equal targets may differ from their rounded mean.
        real = rows.unsqueeze(2)
        low, high = (
            torch.where(real, y, torch.inf).amin(1),
            torch.where(real, y, -torch.inf).amax(1),
        )
        return 1 - error / spread.masked_fill((low == high).all(1), torch.nan)
