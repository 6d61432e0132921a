"""How many steps unrolling takes, and how long they are, where that is left open."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, Params, TaskParams
from fewshot_blo.hypergrad.curvature import curvature
from fewshot_blo.kernel import InnerSteps, adapt
from fewshot_blo.kernel.inner_steps import MOST_STEPS
from fewshot_blo.kernel.rules import RuleState, by_task

_ACCURACY = 1e-7
"""To which the derivative of the inner parameters converges, relative."""


@dataclass(frozen=True, eq=False)
class _HeavyBall:
    """``m ← β m + g``, ``v ← v - α m`` with a step size and a momentum of each task, ``[T]``."""

    step_size: Tensor
    momentum: Tensor

    def init(self, params: TaskParams, outer: Params) -> RuleState:
        del outer
        return {"momentum": {name: torch.zeros_like(p) for name, p in params.items()}}

    def update(
        self, gradients: TaskParams, state: RuleState, params: TaskParams, step: int
    ) -> tuple[TaskParams, RuleState]:
        del step
        m = {
            name: by_task(self.momentum, old) * old + gradients[name]
            for name, old in state["momentum"].items()
        }
        new = {name: p - by_task(self.step_size, p) * m[name] for name, p in params.items()}
        return new, {"momentum": m}


def chosen_steps(problem: Bilevel, start: TaskParams, inner: InnerSteps) -> InnerSteps:
    """A number of steps, and a rule, for inner steps that leave them open; others as they are.

    The inner problem is solved once without derivatives, which tells the number for a rule that is
    given. Without one it is gradient descent with momentum for the curvature that was measured at
    the start and at the end: with the extreme curvatures μ and L the step size is 1/L and the
    momentum ``(1 - sqrt(μ/L))²``, so that value and derivative converge as ``(1 - sqrt(μ/L))^k``.

    Args:
        problem: the inner problems.
        start: initial inner parameters, ``[T, ...]``.
        inner: the steps.
    """
    given = inner.steps is not None and inner.rule is not None and inner.tolerance is None
    if given or inner.steps == 0:
        return inner
    taken = 0

    def count(number: int, params: TaskParams) -> None:
        nonlocal taken
        taken = number + 1

    loss, project = problem.inner_loss, problem.project
    end = adapt(loss, start, inner, outer=problem.outer, project=project, visit=count)
    if inner.rule is not None:
        return replace(inner, steps=taken, tolerance=None)
    at_start, at_end = curvature(loss, start), curvature(loss, end)
    largest = torch.maximum(at_start.largest, at_end.largest)
    ratio = (at_end.positive / largest).clamp(min=(math.log(_ACCURACY) / MOST_STEPS) ** 2)
    # A projection stops what momentum carries on, so there are plain steps with constraints.
    root = ratio.sqrt() if project is None else ratio
    step_size = torch.where(largest > 0, 1 / largest.where(largest > 0, 1), 1)
    steps = inner.steps
    if steps is None or inner.tolerance is not None:
        rate = float(1 - root.min())
        needed = 1 if rate <= 0 else math.ceil(math.log(_ACCURACY) / math.log(rate))
        steps = min(needed, inner.most)
    momentum = (1 - root).square() if project is None else torch.zeros_like(root)
    return InnerSteps(steps, _HeavyBall(step_size, momentum))
