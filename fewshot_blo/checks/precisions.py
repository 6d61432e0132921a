"""``measure_precisions``: error and time of an outer step in each precision, against float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fewshot_blo.checks.backends import flat_step, relative_difference
from fewshot_blo.hypergrad import Strategy
from fewshot_blo.kernel.precision import Precision, offered_precisions
from fewshot_blo.machine.timing import best_seconds
from fewshot_blo.problems import FewShotProblem, NormMode
from fewshot_blo.tasks import TaskBatch


@dataclass(frozen=True)
class PrecisionError:
    """Error of an outer step in a precision relative to float64, and the time of both.

    Attributes:
        precision: precision of the step.
        loss: relative error of the tasks' outer losses.
        hypergradient: relative error of the hypergradient.
        seconds: time of the step in seconds.
        float64_seconds: time of the float64 step in seconds.
    """

    precision: Precision
    loss: float
    hypergradient: float
    seconds: float
    float64_seconds: float


def measure_precisions(
    problem: Callable[[Literal["float32", "float64"], Precision], FewShotProblem],
    strategy: Strategy,
    batch: TaskBatch,
    *,
    norm: NormMode = "transductive",
) -> list[PrecisionError]:
    """Takes and times one outer step in every precision that the device supports, and in float64.

    All steps start from the same float32 parameters and images.

    Args:
        problem: makes the same problem with parameters of either dtype.
        strategy: any strategy.
        batch: tasks, whose images are rounded to float32.
        norm: norm mode of the query set.
    """
    rounded = batch.to(batch.device, torch.float32)
    exact = rounded.to(batch.device, torch.float64)
    example = next(iter(problem("float32", "float32").outer.values()))
    errors = []
    for precision in offered_precisions(example):
        reduced, reference = problem("float32", precision), problem("float64", "float32")
        with torch.no_grad():
            for name, leaf in reference.outer.items():
                leaf.copy_(reduced.outer[name])
        loss, gradient, seconds = _timed_step(reduced, strategy, rounded, norm)
        exact_loss, exact_gradient, exact_seconds = _timed_step(reference, strategy, exact, norm)
        errors.append(
            PrecisionError(
                precision,
                relative_difference(loss, exact_loss),
                relative_difference(gradient, exact_gradient),
                seconds,
                exact_seconds,
            )
        )
    return errors


def _timed_step(
    problem: FewShotProblem, strategy: Strategy, batch: TaskBatch, norm: NormMode
) -> tuple[Tensor, Tensor, float]:
    problem.prepare(batch)
    loss, gradient = flat_step(problem, strategy, batch, norm)
    device = batch.device
    seconds = best_seconds(lambda: flat_step(problem, strategy, batch, norm), device)
    return loss.double(), gradient.double(), seconds
