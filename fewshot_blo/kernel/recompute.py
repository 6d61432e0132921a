"""Recomputes inner steps in the backward pass instead of storing their graphs."""

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
"""By default up to this many steps store their graphs; more are recomputed."""

_STATES = 3
"""Stored states may take the memory of this many steps' graphs. With the graph that is being built
this is less than ``KEPT_STEPS`` graphs, the most that steps without recomputation store."""


def run_recomputed(
    step: Callable[[int, TaskParams, RuleState], Carry], numbers: range, carry: Carry, outer: Params
) -> Carry:
    """Takes inner steps whose graphs are built one at a time in the backward pass.

    The forward pass stores the state before each step, as long as all states take no more memory
    than the graphs of three steps; each step is then computed twice. Beyond that, the earlier steps
    are grouped into segments: only the start of a segment is stored, the backward pass runs the
    segment again to store the state before each of its steps, then each step a third time with its
    graph. ``torch.utils.checkpoint`` would compute a step twice in the forward pass already,
    because of the gradient inside it.

    Args:
        step: maps a step's index, parameters and rule state to the next parameters and state.
        numbers: indices of the steps.
        carry: parameters and state before the first step.
        outer: must include every leaf besides ``carry`` that the steps depend on; other leaves get
            no gradient.
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
    # Saved for the inner gradient; differentiating that saves about as much again.
    graph = 2 * saved.total
    states = _STATES * graph // max(1, sum(value.nbytes for value in values))
    rest = numbers[1:]
    for length in segments(len(rest), states):
        part, rest = rest[:length], rest[length:]
        values = take_each(part, values) if length == 1 else _apply(take_each, part, values, leaves)
    result: Carry = tree_unflatten(values, structure)
    return result


def segments(steps: int, states: int) -> list[int]:
    """Lengths of consecutive segments of ``steps`` steps, as few as possible longer than one.

    The step of a segment of length 1 is computed twice, those of longer segments three times. At
    most ``states`` states (or ``sqrt(2 steps) + 1``, if that is more) are stored at a time: the
    starts of the current segment, of those before it, and of the steps inside it.
    """
    states = max(states, least_states(steps))
    cut = 0  # Number of long segments, of at most states, states - 1, ... steps.
    while sum(range(states - cut, states + 1)) < steps:
        cut += 1
    alone = min(steps, states - cut)
    lengths: list[int] = []
    for longest in range(states, states - cut, -1):
        lengths.append(min(longest, steps - alone - sum(lengths)))
    return lengths + [1] * alone


def least_states(steps: int) -> int:
    """Lower bound on the number of stored states, whatever the memory that their graphs take."""
    return math.isqrt(2 * steps) + 1


Take = Callable[[range, list[Tensor]], list[Tensor]]


def _apply(take: Take, part: range, values: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    results = _Recomputed.apply(take, part, leaves, *values, *leaves)
    return list(results)


class _Recomputed(Function):
    """``take(part, values)``; saves only ``values`` and the random state for backward."""

    @staticmethod
    def forward(
        ctx: Any, take: Take, part: range, leaves: list[Tensor], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        values = tensors[: len(tensors) - len(leaves)]
        ctx.take, ctx.part, ctx.leaves = take, part, leaves
        # On a GPU the backward pass runs in an autograd thread without these variables.
        ctx.variables = copy_context()
        # A recorded step draws no random numbers, and generator states cannot be recorded.
        ctx.random = (
            None if is_recording() else (torch.get_rng_state(), *get_device_states(*values[:1]))
        )
        ctx.save_for_backward(*values)
        # What no loss depends on stays without a gradient, and is found to be without one.
        ctx.set_materialize_grads(False)
        return tuple(take(part, list(values)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        values = [
            value.detach().requires_grad_(value.is_floating_point()) for value in ctx.saved_tensors
        ]
        with torch.enable_grad(), _random_state(ctx.random):
            results = ctx.variables.run(ctx.take, ctx.part, values)
        used = [
            (result, cotangent)
            for result, cotangent in zip(results, cotangents, strict=True)
            if cotangent is not None and result.requires_grad
        ]
        # Steps share the graph from the leaves to the inputs of the loss: it is retained.
        gradients = torch.autograd.grad(
            [result for result, _ in used],
            [*values, *ctx.leaves],
            [cotangent for _, cotangent in used],
            retain_graph=True,
            allow_unused=True,
        )
        return None, None, None, *gradients


@contextmanager
def _random_state(random: tuple[Tensor, list[int], list[Tensor]] | None) -> Iterator[None]:
    """Inside, random numbers are drawn from a saved state of the generators, if there is one."""
    if random is None:
        yield
        return
    host, devices, states = random
    with torch.random.fork_rng(devices):
        torch.set_rng_state(host)
        set_device_states(devices, states)
        yield
