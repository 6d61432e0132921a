"""Newton's method for inner problems of few parameters that start near their solution."""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, TaskParams, task_dot
from fewshot_blo.hypergrad.dense import FEW, decomposed
from fewshot_blo.hypergrad.gradients import hessian_products, inner_gradients
from fewshot_blo.kernel import InnerSteps, adapt
from fewshot_blo.kernel.rules import by_task

_MOST_STEPS = 10
_UNSOLVED = 1e-3
"""Share of the gradient that no step cancels from which on there is no Newton step."""

_ROUNDING = 10
"""How many times the rounding of eigenvalues a negative one may be that is none."""

_SLOW = 0.5
"""Share of the gradient's norm left by a step from which on Newton's method is given up."""


def solved_or_adapted(problem: Bilevel, start: TaskParams, inner: InnerSteps) -> TaskParams:
    """Inner parameters after the inner steps, ``[T, ...]``, detached.

    Where number, rule and tolerance of the steps are open and tasks have at most 100 parameters,
    Newton steps are tried first. A task keeps them if none starts where G has negative curvature,
    which would lead to a saddle point, each solves its linear system, leads downhill and halves the
    gradient, and the last is as short as inner steps are in the end. Other tasks take inner steps
    from their start: no task's solution depends on those beside it.

    Args:
        problem: the inner problems.
        start: initial inner parameters, ``[T, ...]``.
        inner: the steps.
    """
    few = sum(p[0].numel() for p in start.values()) <= FEW
    if not (inner == InnerSteps() and few and problem.project is None):
        return adapt(problem.inner_loss, start, inner, outer=problem.outer, project=problem.project)
    found, solved = _newton(problem, start, inner)
    if bool(solved.all()):
        return found
    start = _chosen(solved, found, start)
    return _chosen(solved, found, adapt(problem.inner_loss, start, inner, outer=problem.outer))


def _newton(problem: Bilevel, start: TaskParams, inner: InnerSteps) -> tuple[TaskParams, Tensor]:
    """Solutions, and of which tasks they are, ``[T]``: the others do not converge at once."""
    v = {name: p.detach() for name, p in start.items()}
    first = next(iter(v.values()))
    tolerance = inner.ends_at(first.dtype)
    assert tolerance is not None
    solved = torch.zeros(len(first), dtype=torch.bool, device=first.device)
    going, before = ~solved, torch.tensor(torch.inf)
    for _ in range(_MOST_STEPS):
        v = {name: p.detach().requires_grad_() for name, p in v.items()}
        with torch.enable_grad():
            losses = problem.inner_loss(v)
            g_v = inner_gradients(losses.sum(), v, create_graph=True)
        g = {name: x.detach() for name, x in g_v.items()}
        size = task_dot(g, g).sqrt()
        product = hessian_products(g_v, v)
        h = decomposed(product, g)
        step = h.solve(g)
        convex = h.finite & (h.values[:, 0] >= -_ROUNDING * h.rounding)
        left = {name: x - g[name] for name, x in product(step).items()}
        going = going & losses.isfinite() & (size <= _SLOW * before.to(size)) & convex
        going &= (task_dot(left, left).sqrt() <= _UNSOLVED * size) & (task_dot(g, step) >= 0)
        stepped = {name: p.detach() - step[name] for name, p in v.items()}
        v = _chosen(going, stepped, {name: p.detach() for name, p in v.items()})
        length, before = task_dot(step, step).sqrt(), size
        short = going & (length <= tolerance * (1 + task_dot(v, v).sqrt()))
        solved, going = solved | short, going & ~short
        if not bool(going.any()):
            break
    return v, solved


def _chosen(tasks: Tensor, those: TaskParams, others: TaskParams) -> TaskParams:
    """The first parameters of some tasks, and the second ones of the rest."""
    return {n: torch.where(by_task(tasks, p), p, others[n].detach()) for n, p in those.items()}
