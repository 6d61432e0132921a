"""Comparing the kernel's two backends in float64 on a user's own problem and tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_blo.chunks import dropout_keys, hypergradient
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad import Strategy, Unroll
from fewshot_blo.kernel import SGD, Backend, UpdateRule
from fewshot_blo.problems import FewShotProblem, NormMode
from tasks import TaskBatch

TOLERANCE = 1e-10


@dataclass(frozen=True)
class Comparison:
    """How far the batched kernel is from the loop, relative to the loop's norm."""

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
    """Takes one outer step by each backend and compares what comes out.

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
        loop_loss, loop = _outer_step(problem("loop"), method, batch, norm)
        try:
            loss, batched = _outer_step(problem("batched"), method, batch, norm)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigurationError(
                f"the network cannot be batched over tasks ({reason}): it runs task by task, and "
                "there is nothing to compare; set problem.backend to loop"
            ) from error
        comparisons.append(Comparison(f"outer loss ({quantity})", _relative(loss, loop_loss)))
        comparisons.append(Comparison(quantity, _relative(batched, loop)))
    return comparisons


def _outer_step(
    problem: FewShotProblem, strategy: Strategy, batch: TaskBatch, norm: NormMode
) -> tuple[Tensor, Tensor]:
    """Outer losses ``[T]``, and the hypergradient as one vector."""
    problem.network.train()
    keys = dropout_keys(batch, 0, 0)
    step = hypergradient(problem, strategy, strategy.init(), batch, norm=norm, keys=keys)
    return step.outer_loss, torch.cat([g.flatten() for g in step.gradient.values()])


def _relative(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).norm() / reference.norm())
