"""How many steps unrolling takes, and how long they are, where that is left open."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, Params, TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad.curvature import curvature
from fewshot_blo.kernel import InnerSteps, adapt
from fewshot_blo.kernel.inner_steps import MOST_STEPS
from fewshot_blo.kernel.rules import RuleState, UpdateRule, by_task

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


@dataclass(frozen=True, eq=False)
class _Counted:
    """Steps of another rule, of each task its own number, after which it stays where it is.

    Attributes:
        rule: the other rule.
        counts: numbers of steps, ``[T]``.
    """

    rule: UpdateRule
    counts: Tensor

    def init(self, params: TaskParams, outer: Params) -> RuleState:
        return self.rule.init(params, outer)

    def update(
        self, gradients: TaskParams, state: RuleState, params: TaskParams, step: int
    ) -> tuple[TaskParams, RuleState]:
        moves = step < self.counts
        # Gradients of zero where a task is done: its steps may no longer be finite.
        gradients = {n: torch.where(by_task(moves, g), g, 0) for n, g in gradients.items()}
        new, state = self.rule.update(gradients, state, params, step)
        return {n: torch.where(by_task(moves, p), new[n], p) for n, p in params.items()}, state


@dataclass(frozen=True)
class ChosenSteps:
    """Inner steps, and how many of them each task takes.

    Attributes:
        steps: the steps, of a number and a rule.
        counts: numbers of steps, ``[T]``; None where they were not open.
    """

    steps: InnerSteps
    counts: Tensor | None = None


def chosen_steps(problem: Bilevel, start: TaskParams, inner: InnerSteps) -> ChosenSteps:
    """A number of steps, and a rule, for inner steps that leave them open; others as they are.

    The inner problem is solved once without derivatives, which tells the number for a rule that is
    given. Without one it is gradient descent with momentum for the curvature that was measured at
    the start and at the end: with the extreme curvatures μ and L the step size is 1/L and the
    momentum ``(1 - sqrt(μ/L))²``, so that value and derivative converge as ``(1 - sqrt(μ/L))^k``.
    Each task takes as many steps as it would alone.

    Args:
        problem: the inner problems.
        start: initial inner parameters, ``[T, ...]``.
        inner: the steps.

    Raises:
        ConfigurationError: if there is a number of steps, but neither a rule nor a tolerance.
    """
    if inner.steps == 0:
        return ChosenSteps(inner)
    if inner.steps is not None and inner.tolerance is None:
        if inner.rule is not None:
            return ChosenSteps(inner)
        raise ConfigurationError(
            f"{inner.steps} inner steps without a rule: where so many steps end depends on their "
            "size, which would be measured and has no derivative here. Give a rule, as "
            f"InnerSteps({inner.steps}, SGD(0.1)), or leave the number of steps unset"
        )
    first = next(iter(start.values()))
    counts = torch.zeros(len(first), dtype=torch.long, device=first.device)
    last = start

    def count(number: int, params: TaskParams) -> None:
        nonlocal last
        moved = [(p != last[name]).reshape(len(p), -1).any(1) for name, p in params.items()]
        counts[torch.stack(moved).any(0)] = number + 1
        last = params

    loss, project = problem.inner_loss, problem.project
    end = adapt(loss, start, inner, outer=problem.outer, project=project, visit=count)
    if inner.rule is not None:
        most = max(1, int(counts.max()))
        counted = replace(inner, steps=most, rule=_Counted(inner.rule, counts), tolerance=None)
        return ChosenSteps(counted, counts)
    at_start, at_end = curvature(loss, start), curvature(loss, end)
    largest = torch.maximum(at_start.largest, at_end.largest)
    ratio = (at_end.positive / largest).clamp(min=(math.log(_ACCURACY) / MOST_STEPS) ** 2)
    # A projection stops what momentum carries on, so there are plain steps with constraints.
    root = ratio.sqrt() if project is None else ratio
    step_size = torch.where(largest > 0, 1 / largest.where(largest > 0, 1), 1)
    rate = (1 - root.double()).clamp(min=0)
    # A rate of 0 has a logarithm of -inf, and needs a single step.
    counts = (math.log(_ACCURACY) / rate.log()).ceil().clamp(min=1, max=inner.most).long()
    momentum = (1 - root).square() if project is None else torch.zeros_like(root)
    rule = _Counted(_HeavyBall(step_size, momentum), counts)
    return ChosenSteps(InnerSteps(int(counts.max()), rule), counts)
