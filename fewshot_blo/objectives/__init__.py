"""Losses and metrics: from outputs and targets of T tasks to one number a task."""

from __future__ import annotations

from fewshot_blo.objectives.accuracy import Accuracy
from fewshot_blo.objectives.binary_cross_entropy import BinaryCrossEntropy
from fewshot_blo.objectives.cross_entropy import CrossEntropy
from fewshot_blo.objectives.metric import (
    AnyLoss,
    FunctionMetric,
    LossFunction,
    Metric,
    as_metric,
)
from fewshot_blo.objectives.of_torchmetrics import Torchmetrics
from fewshot_blo.objectives.open_set import AUPR, AUROC, OpenSetAccuracy
from fewshot_blo.objectives.regression import R2, Huber, MeanAbsoluteError, MeanSquaredError

LOSSES = (CrossEntropy, MeanSquaredError, MeanAbsoluteError, Huber, BinaryCrossEntropy)
"""Losses that recipes can name."""

METRICS = (Accuracy, *LOSSES, R2, AUROC, AUPR, OpenSetAccuracy)
"""Metrics that recipes can name."""

__all__ = [
    "AUPR",
    "AUROC",
    "LOSSES",
    "METRICS",
    "R2",
    "Accuracy",
    "AnyLoss",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "FunctionMetric",
    "Huber",
    "LossFunction",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Metric",
    "OpenSetAccuracy",
    "Torchmetrics",
    "as_metric",
]
