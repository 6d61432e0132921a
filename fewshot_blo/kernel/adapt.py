"""The inner loop of T tasks at once, used by every strategy, evaluation and prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params, TaskLoss, TaskParams, task_dot
from fewshot_blo.kernel.inner_steps import InnerSteps
from fewshot_blo.kernel.recompute import run_recomputed
from fewshot_blo.kernel.rules import TENTATIVE, RuleState, by_task

Derivatives = Literal["none", "first", "second"]

Visit = Callable[[int, TaskParams], None]

_STEPS_BETWEEN_SYNCS = 16

_inner_step: ContextVar[int | None] = ContextVar("inner_step", default=None)
_draw: ContextVar[int | None] = ContextVar("draw", default=None)


def inner_step() -> int | None:
    """Index of the inner step whose loss is being computed; None after the last step.

    Layers that draw random numbers or have per-step parameters read it.
    """
    return _inner_step.get()


@contextmanager
def at_step(step: int | None) -> Iterator[None]:
    """Inside, losses are computed for that inner step; None means after the last step."""
    token = _inner_step.set(step)
    try:
        yield
    finally:
        _inner_step.reset(token)


def draw() -> int | None:
    """The number of the further sample of data that a loss after the last inner step is of.

    They go on from the number of inner steps; None for the first such sample. Problems with
    mini-batches depend on it; layers do not, for they are those after the last step.
    """
    return _draw.get()


@contextmanager
def at_draw(number: int | None) -> Iterator[None]:
    """Losses computed inside are of that sample of data; None for the first after the last step."""
    token = _draw.set(number)
    try:
        yield
    finally:
        _draw.reset(token)


def adapt(
    loss: TaskLoss,
    params: TaskParams,
    inner: InnerSteps,
    *,
    outer: Params | None = None,
    derivatives: Derivatives = "none",
    second_order_steps: int | None = None,
    recompute: bool = False,
    project: Callable[[TaskParams], TaskParams] | None = None,
    visit: Visit | None = None,
) -> TaskParams:
    """Takes inner steps on the loss of every task at once.

    Row t of the result depends on row t of ``params`` and on ``loss(...)[t]`` alone: tasks are
    independent, so the gradient of the summed losses is the stack of the tasks' gradients. The
    forward pass may be vmapped inside ``loss``; gradients are always taken outside of vmap, because
    PyTorch's batching rules for the backward of norm layers drop second-order terms.

    Args:
        loss: maps task-stacked parameters to one loss per task, ``[T]``.
        params: initial parameters, ``[T, ...]``.
        inner: number of steps and update rule.
        outer: outer variables. A rule reads learned step sizes from them; with ``recompute`` they
            must include every leaf that the loss depends on.
        derivatives: derivatives that the result supports with respect to all that ``params``,
            ``loss`` and the rule depend on. "none": it is detached. "first": inner gradients are
            treated as constants (first-order MAML). "second": exact.
        second_order_steps: with "second", number of last steps that are differentiated exactly;
            earlier steps are treated as "first". None for all.
        recompute: store parameters between the exact steps instead of their graphs, which are
            rebuilt in the backward pass, so that memory hardly grows with the number of steps.
        project: to the nearest feasible parameters, after every step.
        visit: called after each step that is not recomputed, with its index and the new parameters.

    A tolerance of ``inner`` stops tasks without derivatives alone; with them all steps are taken.

    Returns:
        The adapted parameters, ``[T, ...]``.
    """
    steps = inner.most
    rule = inner.update_rule(plain=derivatives == "none" and project is None)
    dtype = next(iter(params.values())).dtype
    solved = _Solved(inner.ends_at(dtype) if derivatives == "none" else None)
    exact_from = steps if derivatives != "second" else steps - _exact(steps, second_order_steps)

    def step(number: int, current: TaskParams, state: RuleState) -> tuple[TaskParams, RuleState]:
        graph = torch.is_grad_enabled()
        current = {
            name: p if graph and p.requires_grad else p.detach().requires_grad_()
            for name, p in current.items()
        }
        with torch.enable_grad(), at_step(number):
            losses = loss(current)
            gradients = torch.autograd.grad(
                losses.sum(),
                list(current.values()),
                create_graph=graph and number >= exact_from,
                materialize_grads=True,
            )
        named = solved.marked(losses, dict(zip(current, gradients, strict=True)))
        new, state = rule.update(named, state, current, number)
        return (new if project is None else project(new)), state

    graph = derivatives != "none"
    with torch.set_grad_enabled(graph):
        # A view: a use of the same tensor in the loss (a proximal term) is not the parameter.
        current = {name: p.view_as(p) if graph else p.detach() for name, p in params.items()}
        state = rule.init(current, outer or {})
        last = exact_from if recompute else steps
        for number in range(last):
            before = current
            current, state = step(number, current, state)
            current = solved.kept(number, before, current, state.get(TENTATIVE))
            if visit is not None:
                visit(number, current)
            if solved.all_are:
                break
        if recompute:
            current, state = run_recomputed(
                step, range(exact_from, steps), (current, state), outer or {}
            )
    return current


class _Solved:
    """Which tasks are solved: those whose step was short. They stay where they are.

    So do those that are lost, as their parameters are not finite.
    """

    def __init__(self, tolerance: float | None) -> None:
        self.tolerance = tolerance
        self.tasks: Tensor | None = None
        self.all_are = False

    def marked(self, losses: Tensor, gradients: TaskParams) -> TaskParams:
        """The gradients, NaN where the loss is not finite: those of ``log`` are, for example."""
        if self.tolerance is None:
            return gradients
        finite = losses.detach().isfinite()
        return {n: torch.where(by_task(finite, g), g, torch.nan) for n, g in gradients.items()}

    def kept(
        self, number: int, before: TaskParams, after: TaskParams, tentative: TaskParams | None
    ) -> TaskParams:
        """The parameters after a step, those of solved tasks as before it."""
        if self.tolerance is None:
            return after
        if self.tasks is not None:
            solved = self.tasks
            after = {n: torch.where(by_task(solved, p), before[n], p) for n, p in after.items()}
        step = {name: p - before[name] for name, p in after.items()}
        scale = 1 + task_dot(after, after).sqrt()
        length = task_dot(step, step).sqrt()
        short = length <= self.tolerance * scale
        if tentative is not None:
            short = short & (~tentative[""] | (length == 0))
        ended = short | ~length.isfinite()
        self.tasks = ended if self.tasks is None else self.tasks | ended
        # On a GPU this is a host sync, so it waits for some steps.
        if self.tasks.device.type == "cpu" or number % _STEPS_BETWEEN_SYNCS == 0:
            self.all_are = bool(self.tasks.all())
        return after


def _exact(steps: int, second_order_steps: int | None) -> int:
    return steps if second_order_steps is None else min(steps, second_order_steps)
