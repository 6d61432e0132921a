"""Exactness on a user's own problem and tasks: of the kernel's backends, and of precisions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fewshot_blo.chunks import dropout_keys, hypergradient
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad import Strategy, Unroll
from fewshot_blo.kernel import SGD, Backend, UpdateRule
from fewshot_blo.kernel.plain import plain_operations
from fewshot_blo.kernel.precision import Precision, offered_precisions
from fewshot_blo.kernel.timing import best_seconds
from fewshot_blo.problems import FewShotProblem, NormMode
from tasks import TaskBatch

TOLERANCE = 1e-10


@dataclass(frozen=True)
class Comparison:
    """How far the batched kernel is from a plain loop, relative to the loop's norm."""

    quantity: str
    difference: float

    @property
    def agrees(self) -> bool:
        """Whether the difference is rounding."""
        return self.difference <= TOLERANCE


def check_kernel(
    problem: Callable[[Backend], FewShotProblem],
    strategy: Strategy,
    batch: TaskBatch,
    *,
    rule: UpdateRule = SGD(),
    norm: NormMode = "transductive",
) -> list[Comparison]:
    """Takes one outer step by the batched kernel and one by a loop, and compares what comes out.

    The loop calls the network task by task and with PyTorch's own operations.

    First- and second-order unrolling over three inner steps are compared beside the strategy.

    Args:
        problem: makes the same float64 problem for either backend.
        strategy: any.
        batch: float64 tasks.
        rule: of the unrolled steps.
        norm: norm mode of the query set.

    Raises:
        ConfigurationError: if the network cannot be batched over tasks.
    """
    strategies: dict[str, Strategy] = {
        "first-order gradient": Unroll(3, rule, first_order=True),
        "second-order gradient": Unroll(3, rule),
        f"{type(strategy).__name__} hypergradient": strategy,
    }
    comparisons = []
    for quantity, method in strategies.items():
        with plain_operations():
            loop_loss, loop = flat_step(problem("loop"), method, batch, norm)
        try:
            loss, batched = flat_step(problem("batched"), method, batch, norm)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigurationError(
                f"the network cannot be batched over tasks ({reason}): it runs task by task, and "
                "there is nothing to compare; set problem.backend to loop"
            ) from error
        comparisons.append(Comparison(f"outer loss ({quantity})", _relative(loss, loop_loss)))
        comparisons.append(Comparison(quantity, _relative(batched, loop)))
    return comparisons


@dataclass(frozen=True)
class PrecisionError:
    """How far an outer step in a precision is from one in float64, and how long each takes.

    Attributes:
        precision: of the step.
        loss: relative error of the tasks' outer losses.
        hypergradient: relative error of the hypergradient.
        seconds: that the step takes.
        float64_seconds: that the step in float64 takes.
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
    """Takes one outer step in every precision that the device offers and in float64.

    All start from the same float32 parameters and images.

    Args:
        problem: makes the same problem with parameters of either dtype.
        strategy: any.
        batch: tasks, whose images are rounded to float32.
        norm: norm mode of the query set.
    """
    rounded = batch.to(batch.support_x.device, torch.float32)
    exact = rounded.to(batch.support_x.device, torch.float64)
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
                _relative(loss, exact_loss),
                _relative(gradient, exact_gradient),
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
    device = batch.support_x.device
    seconds = best_seconds(lambda: flat_step(problem, strategy, batch, norm), device)
    return loss.double(), gradient.double(), seconds


def flat_step(
    problem: FewShotProblem, strategy: Strategy, batch: TaskBatch, norm: NormMode
) -> tuple[Tensor, Tensor]:
    """Outer losses ``[T]``, and the hypergradient as one vector."""
    problem.network.train()
    keys = dropout_keys(batch, 0, 0)
    step = hypergradient(problem, strategy, strategy.init(), batch, norm=norm, keys=keys)
    return step.outer_loss, torch.cat([g.flatten() for g in step.gradient.values()])


def _relative(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).norm() / reference.norm())
