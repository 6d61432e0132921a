"""The inner problem itself: its loss from step to step, and its solution by Newton's method."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, TaskParams, task_dot
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad.linear_solve import ConjugateGradient
from fewshot_blo.hypergrad.strategy import inner_gradients
from fewshot_blo.hypergrad.systems import add_scaled
from fewshot_blo.kernel import InnerSteps, adapt
from fewshot_blo.problems import FewShotProblem, NormMode
from fewshot_blo.tasks import TaskBatch
from fewshot_blo.training.step import dropout_keys

_HALVINGS = 30


_SOLVER = ConjugateGradient(steps=100)


def inner_losses(
    problem: FewShotProblem,
    batch: TaskBatch,
    inner: InnerSteps,
    *,
    norm: NormMode = "transductive",
) -> Tensor:
    """Inner losses before the first of the inner steps and after each, ``[inner.steps + 1, T]``.

    Where they rise, the steps are too long: the strategies other than unrolling take the result
    for a minimiser, and then lead the outer variables to where it is none.

    Args:
        problem: any.
        batch: tasks.
        inner: the steps.
        norm: norm mode of the query set.
    """
    problem.prepare(batch)
    problem.network.train()
    bilevel = problem.bind(batch, norm, dropout_keys(batch, 0, 0)).bilevel
    losses = []

    def recorded(v: TaskParams) -> Tensor:
        loss = bilevel.inner_loss(v)
        losses.append(loss.detach())
        return loss

    end = adapt(recorded, bilevel.inner_init, inner, outer=bilevel.outer)
    recorded(end)
    return torch.stack(losses)


def solve_inner(problem: Bilevel, *, steps: int = 20, tolerance: float = 1e-7) -> TaskParams:
    """The minimisers of G, ``[T, ...]``, by Newton's method from the start of the inner problem.

    Newton's directions are found by conjugate gradients and halved until G falls enough.

    Args:
        problem: with an inner loss that is convex near its start.
        steps: at most.
        tolerance: norm of the gradient of each task, relative to that at the start; 1e-10 will do
            where the start is the solution.

    Raises:
        ConfigurationError: if the gradient is larger after all steps.

    Source: Nocedal & Wright, "Numerical Optimization", Newton-CG with a line search.
    """
    v = {name: p.detach().requires_grad_() for name, p in problem.inner_init.items()}
    target: Tensor | None = None
    for _ in range(steps):
        loss = problem.inner_loss(v)
        g = inner_gradients(loss.sum(), v, create_graph=True)
        squared = task_dot(g, g).detach()
        target = (tolerance**2 * squared).clamp(min=1e-20) if target is None else target
        if (squared <= target).all():
            return {name: p.detach() for name, p in v.items()}
        v = _newton_step(problem.inner_loss, v, g, loss.detach())
    raise ConfigurationError(
        f"the inner problem is not solved after {steps} steps of Newton's method: its loss is not "
        "convex or not smooth there; a larger prox makes it so"
    )


def _newton_step(
    inner_loss: Callable[[TaskParams], Tensor], v: TaskParams, g: TaskParams, loss: Tensor
) -> TaskParams:
    def hessian_product(x: TaskParams) -> TaskParams:
        return inner_gradients(task_dot(g, x).sum(), v)

    direction = _SOLVER(hessian_product, {name: -p.detach() for name, p in g.items()})
    slope = task_dot(g, direction).detach()
    length = torch.ones_like(loss)
    for _ in range(_HALVINGS):
        rounding = 1e-14 * (1 + loss.abs())  # A small loss is a difference of larger numbers.
        with torch.no_grad():
            moved = add_scaled(v, length, direction)
            fallen = inner_loss(moved) <= loss + 1e-4 * length * slope + rounding
        if fallen.all():
            break
        length = torch.where(fallen, length, length / 2)
    return {name: p.requires_grad_() for name, p in moved.items()}
