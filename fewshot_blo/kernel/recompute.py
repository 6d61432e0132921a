"""Steps that are computed a second time in the backward pass instead of being remembered."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import get_device_states, set_device_states

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.kernel.function import Function
from fewshot_blo.kernel.graph import is_recording
from fewshot_blo.kernel.rules import RuleState
from fewshot_blo.machine.memory import SavedBytes

Carry = tuple[TaskParams, RuleState]

KEPT_STEPS = 5
"""So many steps keep their graphs where nobody has chosen; more than these are recomputed."""

_STATES = 3
"""Kept states take the memory of so many steps' graphs; with the graph in the making that is less
than ``KEPT_STEPS`` graphs, so that no number of recomputed steps takes more memory than these."""


def run_recomputed(
    step: Callable[[int, TaskParams, RuleState], Carry], numbers: range, carry: Carry, outer: Params
) -> Carry:
    """Takes the numbered steps, whose graphs are made one at a time in the backward pass.

    The forward pass keeps the states before the steps, as long as all of them take no more memory
    than the graphs of three steps; so a step is computed twice. Where they would take more, the
    earlier steps are cut into segments: of a segment the start is kept, the backward pass takes
    its steps again to keep their starts, and then each a third time with its graph.
    ``torch.utils.checkpoint`` would compute a step twice in the forward pass already, for the
    derivative inside it.

    Args:
        step: from a step's number, parameters and state of the rule to the next ones.
        numbers: of the steps.
        carry: parameters and state before the first step.
        outer: every leaf beside ``carry`` that the steps depend on; gradients reach no others.
    """
    leaves = [leaf for leaf in outer.values() if leaf.requires_grad]
    values, structure = tree_flatten(carry)

    def take(part: range, values: list[Tensor]) -> list[Tensor]:
        current, state = tree_unflatten(values, structure)
        for number in part:
            current, state = step(number, current, state)
        return list(tree_flatten((current, state))[0])

    def take_each(part: range, values: list[Tensor]) -> list[Tensor]:
        for number in part:
            values = _apply(take, range(number, number + 1), values, leaves)
        return values

    saved = SavedBytes()
    with saved:  # The state before the first step exists anyway.
        values = take_each(numbers[:1], values)
    # What was saved is for the gradient; its derivative takes about as much again.
    graph = 2 * saved.total
    states = _STATES * graph // max(1, sum(value.nbytes for value in values))
    rest = numbers[1:]
    for length in segments(len(rest), states):
        part, rest = rest[:length], rest[length:]
        values = take_each(part, values) if length == 1 else _apply(take_each, part, values, leaves)
    result: Carry = tree_unflatten(values, structure)
    return result


def segments(steps: int, states: int) -> list[int]:
    """Lengths of consecutive segments of ``steps`` steps, few of them longer than one.

    A segment of length 1 is one step that is computed twice, those of longer ones thrice. Never
    are more than ``states`` states kept at one time, or than ``sqrt(2 steps) + 1`` where that is
    more: the start of a segment, and of those before, and of the steps inside it.
    """
    states = max(states, least_states(steps))
    cut = 0  # The first ones, of at most states, states - 1, ... steps.
    while sum(range(states - cut, states + 1)) < steps:
        cut += 1
    alone = min(steps, states - cut)
    lengths: list[int] = []
    for longest in range(states, states - cut, -1):
        lengths.append(min(longest, steps - alone - sum(lengths)))
    return lengths + [1] * alone


def least_states(steps: int) -> int:
    """So many states are kept at one time where their graphs take less memory than they do."""
    return math.isqrt(2 * steps) + 1


Take = Callable[[range, list[Tensor]], list[Tensor]]


def _apply(take: Take, part: range, values: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    results = _Recomputed.apply(take, part, leaves, *values, *leaves)
    return list(results)


class _Recomputed(Function):
    """``take(part, values)``, of which only ``values`` and the random state are kept."""

    @staticmethod
    def forward(
        ctx: Any, take: Take, part: range, leaves: list[Tensor], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        values = tensors[: len(tensors) - len(leaves)]
        ctx.take, ctx.part, ctx.leaves = take, part, leaves
        # On a GPU the backward pass runs in a thread of autograd, which has no such variables.
        ctx.variables = copy_context()
        # What is recorded draws no random numbers, and a recording cannot hold their state.
        ctx.random = (
            None if is_recording() else (torch.get_rng_state(), *get_device_states(*values[:1]))
        )
        ctx.save_for_backward(*values)
        return tuple(take(part, list(values)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        values = [value.detach().requires_grad_() for value in ctx.saved_tensors]
        with torch.enable_grad(), _random_state(ctx.random):
            results = ctx.variables.run(ctx.take, ctx.part, values)
        # The graph that steps share, from the leaves to what the loss is made of, stays.
        gradients = torch.autograd.grad(
            results, [*values, *ctx.leaves], cotangents, retain_graph=True, allow_unused=True
        )
        return None, None, None, *gradients


@contextmanager
def _random_state(random: tuple[Tensor, list[int], list[Tensor]] | None) -> Iterator[None]:
    """The random numbers drawn inside follow from a state of the generators, if there is one."""
    if random is None:
        yield
        return
    host, devices, states = random
    with torch.random.fork_rng(devices):
        torch.set_rng_state(host)
        set_device_states(devices, states)
        yield
