"""``check_kernel``: the kernel's backends against a plain loop, on a user's problem and tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_blo.errors import ConfigurationError, StructuralZeroError
from fewshot_blo.hypergrad import BOME, Implicit, Penalty, Reptile, Strategy, Unroll, ValueFunction
from fewshot_blo.kernel import SGD, Backend, InnerSteps, UpdateRule
from fewshot_blo.problems import FewShotProblem, NormMode
from fewshot_blo.tasks import TaskBatch
from fewshot_blo.training.step import dropout_keys, hypergradient

TOLERANCE = 1e-10

_BACKENDS: tuple[Backend, ...] = ("batched", "loop")


@dataclass(frozen=True)
class Comparison:
    """Difference of a backend of the kernel from a plain loop over the user's module.

    Attributes:
        quantity: the gradient that is compared; the outer losses of the step are compared too.
        norm: norm mode of the query set.
        backend: backend of the kernel.
        difference: larger of the two relative differences; NaN if the backend cannot run.
        reason: why the backend cannot run the network; empty if it can.
    """

    quantity: str
    norm: NormMode
    backend: Backend
    difference: float
    reason: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the difference is within rounding, ``TOLERANCE``."""
        return self.difference <= TOLERANCE


def all_strategies(rule: UpdateRule) -> dict[str, Strategy]:
    """Every strategy with a few inner steps, by the name of its hypergradient."""
    strategies: dict[str, Strategy] = {
        "first-order gradient": Unroll(InnerSteps(3, rule), first_order=True),
        "second-order gradient": Unroll(InnerSteps(3, rule)),
        "implicit hypergradient": Implicit(InnerSteps(3, rule)),
        "penalty hypergradient": Penalty(InnerSteps(3, rule)),
        "value-function hypergradient": ValueFunction(InnerSteps(3, rule), 3),
        "BOME hypergradient": BOME(InnerSteps(3, rule), 3),
        "Reptile's direction": Reptile(InnerSteps(3, rule)),
    }
    return {name: strategy.for_training() for name, strategy in strategies.items()}


def check_kernel(
    problem: Callable[[Backend], FewShotProblem],
    strategy: Strategy,
    batch: TaskBatch,
    *,
    rule: UpdateRule = SGD(),
    norms: Sequence[NormMode] = ("transductive",),
) -> list[Comparison]:
    """Compares an outer step of each backend with that of a plain loop over the user's module.

    Compares the strategy in use and all others, except those that do not suit the problem:
    without a proximal term, some hypergradients are structurally zero.

    Args:
        problem: makes the same float64 problem for any backend.
        strategy: strategy in use.
        batch: float64 tasks.
        rule: update rule of the other strategies' inner steps.
        norms: norm modes of the query set.

    Raises:
        RuntimeError: if the backend "loop" cannot run the network.
    """
    strategies = {**all_strategies(rule), f"{type(strategy).__name__} as set": strategy}
    return [
        comparison
        for norm in norms
        for quantity, method in strategies.items()
        for comparison in _compare(problem, quantity, method, batch, norm)
    ]


def _compare(
    problem: Callable[[Backend], FewShotProblem],
    quantity: str,
    strategy: Strategy,
    batch: TaskBatch,
    norm: NormMode,
) -> Iterator[Comparison]:
    try:
        exact_loss, exact = flat_step(problem("reference"), strategy, batch, norm)
    except (StructuralZeroError, ConfigurationError):
        return  # Not an error here: such a strategy raises where it is used.
    for backend in _BACKENDS:
        try:
            loss, found = flat_step(problem(backend), strategy, batch, norm)
        except RuntimeError as error:
            if backend == "loop":
                raise
            reason = str(error).strip().splitlines()[0]
            yield Comparison(quantity, norm, backend, float("nan"), reason)
            continue
        difference = max(relative_difference(loss, exact_loss), relative_difference(found, exact))
        yield Comparison(quantity, norm, backend, difference)


def flat_step(
    problem: FewShotProblem, strategy: Strategy, batch: TaskBatch, norm: NormMode
) -> tuple[Tensor, Tensor]:
    """Outer losses ``[T]``, and the hypergradient flattened to one vector."""
    problem.network.train()
    keys = dropout_keys(batch, 0, 0)
    step = hypergradient(problem, strategy, strategy.init(), batch, norm=norm, keys=keys)
    return step.outer_loss, torch.cat([g.flatten() for g in step.gradient.values()])


def relative_difference(value: Tensor, reference: Tensor) -> float:
    """``|value - reference| / |reference|``, in the Euclidean norm."""
    return float((value - reference).norm() / reference.norm())
