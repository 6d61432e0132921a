"""The one adaptation loop: every strategy, evaluation and prediction solve inner problems here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch

from fewshot_blo.bilevel import Params, TaskLoss, TaskParams
from fewshot_blo.kernel.inner_steps import InnerSteps
from fewshot_blo.kernel.recompute import run_recomputed
from fewshot_blo.kernel.rules import RuleState

Derivatives = Literal["none", "first", "second"]

Visit = Callable[[int, TaskParams], None]

_inner_step: ContextVar[int | None] = ContextVar("inner_step", default=None)
_draw: ContextVar[int | None] = ContextVar("draw", default=None)


def inner_step() -> int | None:
    """The number of the inner step whose loss is being computed; None after the last one.

    Layers that draw random numbers or have parameters of each step depend on it.
    """
    return _inner_step.get()


@contextmanager
def at_step(step: int | None) -> Iterator[None]:
    """Losses computed inside belong to that inner step; None for after the last one."""
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
    visit: Visit | None = None,
) -> TaskParams:
    """Takes inner steps on the loss of every task at once.

    Row t of the result depends on row t of ``params`` and on ``loss(...)[t]`` alone: tasks are
    independent, so the gradient of the summed losses is the stack of the tasks' gradients. The
    forward pass may be vmapped inside ``loss``; the derivatives are always taken outside of it,
    because PyTorch's batched backward rules of the norm layers drop second-order terms.

    Args:
        loss: from task-stacked parameters to ``[T]``.
        params: initial parameters, ``[T, ...]``.
        inner: how many steps of which rule.
        outer: the outer variables: a rule takes learned step sizes from them, and with
            ``recompute`` they must be all leaves that the loss depends on.
        derivatives: of the result with respect to what ``params``, ``loss`` and ``rule`` depend
            on. "none": detached. "first": inner gradients are constants (first-order MAML).
            "second": exact.
        second_order_steps: with "second", how many of the last steps are exact; those before
            are "first". None for all.
        recompute: keep the parameters before the exact steps in place of their graphs, which are
            made again in the backward pass, so that memory hardly grows with steps.
        visit: called after each step that is not recomputed, with its number and the parameters.

    Returns:
        The adapted parameters, ``[T, ...]``.
    """
    steps, rule = inner.steps, inner.rule
    exact_from = steps if derivatives != "second" else steps - _exact(steps, second_order_steps)

    def step(number: int, current: TaskParams, state: RuleState) -> tuple[TaskParams, RuleState]:
        graph = torch.is_grad_enabled()
        current = {
            name: p if graph and p.requires_grad else p.detach().requires_grad_()
            for name, p in current.items()
        }
        with torch.enable_grad(), at_step(number):
            gradients = torch.autograd.grad(
                loss(current).sum(),
                list(current.values()),
                create_graph=graph and number >= exact_from,
                materialize_grads=True,
            )
        return rule.update(dict(zip(current, gradients, strict=True)), state, current, number)

    graph = derivatives != "none"
    with torch.set_grad_enabled(graph):
        # A view: where the loss uses the same tensor, as in a proximal term, that is no parameter.
        current = {name: p.view_as(p) if graph else p.detach() for name, p in params.items()}
        state = rule.init(current, outer or {})
        last = exact_from if recompute else steps
        for number in range(last):
            current, state = step(number, current, state)
            if visit is not None:
                visit(number, current)
        if recompute:
            current, state = run_recomputed(
                step, range(exact_from, steps), (current, state), outer or {}
            )
    return current


def _exact(steps: int, second_order_steps: int | None) -> int:
    return steps if second_order_steps is None else min(steps, second_order_steps)
