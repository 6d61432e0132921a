"""The batched adaptation kernel."""

from __future__ import annotations

from fewshot_blo.kernel.adapt import adapt
from fewshot_blo.kernel.backend import measure_backend
from fewshot_blo.kernel.conversion import for_tasks
from fewshot_blo.kernel.forward import Backend, TaskForward
from fewshot_blo.kernel.layers import BatchNorm, Dropout, StepwiseBatchNorm
from fewshot_blo.kernel.rules import SGD, Adam, LearnedSGD, Momentum, UpdateRule
from fewshot_blo.kernel.statistics import estimate_statistics

__all__ = [
    "SGD",
    "Adam",
    "Backend",
    "BatchNorm",
    "Dropout",
    "LearnedSGD",
    "Momentum",
    "StepwiseBatchNorm",
    "TaskForward",
    "UpdateRule",
    "adapt",
    "estimate_statistics",
    "for_tasks",
    "measure_backend",
]
