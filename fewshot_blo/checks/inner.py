"""The inner problem: its loss at each inner step, and its solution by Newton's method."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, TaskParams, task_dot
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad.gradients import inner_gradients
from fewshot_blo.hypergrad.linear_solve import ConjugateGradient
from fewshot_blo.hypergrad.systems import add_scaled
from fewshot_blo.kernel import InnerSteps, adapt
from fewshot_blo.problems import FewShotProblem, NormMode
from fewshot_blo.tasks import TaskBatch
from fewshot_blo.training.step import dropout_keys

_HALVINGS = 29


_SOLVER = ConjugateGradient(steps=100)


def inner_losses(
    problem: FewShotProblem,
    batch: TaskBatch,
    inner: InnerSteps,
    *,
    norm: NormMode = "transductive",
) -> Tensor:
    """Inner losses before the first inner step and after each, ``[inner.steps + 1, T]``.

    Rising losses mean that the step size is too large: strategies other than Unroll assume that
    the result is near a minimizer, and their hypergradients are then wrong.

    Args:
        problem: any few-shot problem.
        batch: T tasks.
        inner: number of inner steps and their rule.
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
    """Minimizers of G, ``[T, ...]``, by Newton's method from ``inner_init``.

    Newton directions are computed by conjugate gradients, with a backtracking (Armijo) line search.

    Args:
        problem: bilevel problem whose inner loss is convex near ``inner_init``.
        steps: largest number of Newton steps.
        tolerance: tolerance on each task's gradient norm, relative to that at ``inner_init``; an
            absolute norm of 1e-10 is always accepted.

    Raises:
        ConfigurationError: if a gradient norm is above the tolerance after all steps.

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
        "convex or not smooth there; raise prox"
    )


def _newton_step(
    inner_loss: Callable[[TaskParams], Tensor], v: TaskParams, g: TaskParams, loss: Tensor
) -> TaskParams:
    def hessian_product(x: TaskParams) -> TaskParams:
        return inner_gradients(task_dot(g, x).sum(), v)

    direction = _SOLVER(hessian_product, {name: -p.detach() for name, p in g.items()})
    slope = task_dot(g, direction).detach()
    rounding = 1e-14 * (1 + loss.abs())  # A small loss is a difference of larger numbers.

    @torch.no_grad()
    def moved_by(length: Tensor) -> tuple[TaskParams, Tensor]:
        moved = add_scaled(v, length, direction)
        return moved, inner_loss(moved) <= loss + 1e-4 * length * slope + rounding

    length = torch.ones_like(loss)
    moved, fallen = moved_by(length)
    for _ in range(_HALVINGS):
        if fallen.all():
            break
        length = torch.where(fallen, length, length / 2)
        moved, fallen = moved_by(length)
    return {name: p.requires_grad_() for name, p in moved.items()}
