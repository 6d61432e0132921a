"""Newton's method for inner problems of few parameters that start near their solution."""

from __future__ import annotations

import torch

from fewshot_blo.bilevel import Bilevel, TaskParams, task_dot
from fewshot_blo.hypergrad.dense import FEW, Dense
from fewshot_blo.hypergrad.gradients import hessian_products, inner_gradients
from fewshot_blo.kernel import InnerSteps, adapt

_MOST_STEPS = 10
_UNSOLVED = 1e-3
"""Share of the gradient that no step cancels from which on there is no Newton step."""

_SLOW = 0.5
"""Share of the gradient's norm left by a step from which on Newton's method is given up."""


def solved_or_adapted(problem: Bilevel, start: TaskParams, inner: InnerSteps) -> TaskParams:
    """Inner parameters after the inner steps, ``[T, ...]``, detached.

    Where number, rule and tolerance of the steps are open and tasks have at most 100 parameters,
    Newton steps are tried first. They are kept if each solves its linear system, leads downhill and
    halves the gradient, for every task, and the last is as short as inner steps are in the end.

    Args:
        problem: the inner problems.
        start: initial inner parameters, ``[T, ...]``.
        inner: the steps.
    """
    few = sum(p[0].numel() for p in start.values()) <= FEW
    if inner == InnerSteps() and few and problem.project is None:
        found = _newton(problem, start, inner)
        if found is not None:
            return found
    return adapt(problem.inner_loss, start, inner, outer=problem.outer, project=problem.project)


def _newton(problem: Bilevel, start: TaskParams, inner: InnerSteps) -> TaskParams | None:
    """A solution, or None where steps do not converge at once."""
    v = {name: p.detach() for name, p in start.items()}
    tolerance = inner.ends_at(next(iter(v.values())).dtype)
    assert tolerance is not None
    before = torch.tensor(torch.inf)
    for _ in range(_MOST_STEPS):
        v = {name: p.detach().requires_grad_() for name, p in v.items()}
        with torch.enable_grad():
            losses = problem.inner_loss(v)
            g_v = inner_gradients(losses.sum(), v, create_graph=True)
        g = {name: x.detach() for name, x in g_v.items()}
        size = task_dot(g, g).sqrt()
        if not bool((losses.isfinite() & (size <= _SLOW * before.to(size))).all()):
            return None
        product = hessian_products(g_v, v)
        step = Dense()(product, g)
        left = {name: x - g[name] for name, x in product(step).items()}
        solved = task_dot(left, left).sqrt() <= _UNSOLVED * size
        if not bool((solved & (task_dot(g, step) >= 0)).all()):
            return None
        v = {name: p.detach() - step[name] for name, p in v.items()}
        length, before = task_dot(step, step).sqrt(), size
        if bool((length <= tolerance * (1 + task_dot(v, v).sqrt())).all()):
            return v
    return None
