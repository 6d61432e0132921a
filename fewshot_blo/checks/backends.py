"""Exactness on a user's own problem and tasks: of the kernel's backends, and of precisions."""

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
    """How far a backend of the kernel is from a plain loop over the user's own module.

    Attributes:
        quantity: what is compared, together with the outer losses of that step.
        norm: norm mode of the query set.
        backend: of the kernel.
        difference: the larger one, relative to the loop's norm.
        reason: why there is no difference, where the backend cannot run the network.
    """

    quantity: str
    norm: NormMode
    backend: Backend
    difference: float
    reason: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the difference is rounding."""
        return self.difference <= TOLERANCE


def all_strategies(rule: UpdateRule) -> dict[str, Strategy]:
    """Every way to compute a hypergradient, by what it is of, with a few inner steps."""
    return {
        "first-order gradient": Unroll(InnerSteps(3, rule), first_order=True),
        "second-order gradient": Unroll(InnerSteps(3, rule)),
        "implicit hypergradient": Implicit(InnerSteps(3, rule)),
        "penalty hypergradient": Penalty(InnerSteps(3, rule)),
        "value-function hypergradient": ValueFunction(InnerSteps(3, rule), 3),
        "BOME hypergradient": BOME(InnerSteps(3, rule), 3),
        "Reptile's direction": Reptile(InnerSteps(3, rule)),
    }


def check_kernel(
    problem: Callable[[Backend], FewShotProblem],
    strategy: Strategy,
    batch: TaskBatch,
    *,
    rule: UpdateRule = SGD(),
    norms: Sequence[NormMode] = ("transductive",),
) -> list[Comparison]:
    """Takes outer steps by each backend and by a plain loop over the user's own module.

    All strategies are compared beside the one in use, but for those that do not suit the problem:
    without a proximal term some are zero by structure.

    Args:
        problem: makes the same float64 problem for any backend.
        strategy: the one in use.
        batch: float64 tasks.
        rule: of the inner steps of the others.
        norms: norm modes of the query set.
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
        return  # It is said where such a strategy is used; ``check`` names the one in use.
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
    """Outer losses ``[T]``, and the hypergradient as one vector."""
    problem.network.train()
    keys = dropout_keys(batch, 0, 0)
    step = hypergradient(problem, strategy, strategy.init(), batch, norm=norm, keys=keys)
    return step.outer_loss, torch.cat([g.flatten() for g in step.gradient.values()])


def relative_difference(value: Tensor, reference: Tensor) -> float:
    """Norm of the difference relative to that of the reference."""
    return float((value - reference).norm() / reference.norm())
