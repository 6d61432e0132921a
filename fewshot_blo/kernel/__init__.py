"""Inner-loop adaptation of T tasks at once: forward pass, choice of backend, update rules."""

from __future__ import annotations

from fewshot_blo.kernel.adapt import adapt
from fewshot_blo.kernel.backend import BackendChoice, Choice, make_forward
from fewshot_blo.kernel.conversion import for_tasks
from fewshot_blo.kernel.forward import Backend, Forward, TaskForward
from fewshot_blo.kernel.inner_steps import InnerSteps
from fewshot_blo.kernel.layers import StepwiseBatchNorm
from fewshot_blo.kernel.proof import Order, Sample
from fewshot_blo.kernel.rules import SGD, Adam, LearnedSGD, Momentum, UpdateRule
from fewshot_blo.kernel.statistics import estimate_statistics

__all__ = [
    "SGD",
    "Adam",
    "Backend",
    "BackendChoice",
    "Choice",
    "Forward",
    "InnerSteps",
    "LearnedSGD",
    "Momentum",
    "Order",
    "Sample",
    "StepwiseBatchNorm",
    "TaskForward",
    "UpdateRule",
    "adapt",
    "estimate_statistics",
    "for_tasks",
    "make_forward",
]
