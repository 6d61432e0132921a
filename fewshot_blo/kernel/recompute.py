"""Steps that are computed a second time in the backward pass instead of being remembered."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import get_device_states, set_device_states

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.kernel.rules import RuleState

Carry = tuple[TaskParams, RuleState]


def run_recomputed(
    step: Callable[[int, TaskParams, RuleState], Carry], numbers: range, carry: Carry, outer: Params
) -> Carry:
    """Takes the numbered steps; in between, about ``2 sqrt(len(numbers))`` states are kept.

    The steps are cut into segments. The forward pass keeps the start of each segment; the
    backward pass takes the steps of one segment again, keeps their starts, and then takes each
    step a third time with its graph. ``torch.utils.checkpoint`` would compute a step twice in the
    forward pass already, for the derivative inside it, and keep the state of every step.

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

    length = math.isqrt(max(len(numbers) - 1, 0)) + 1
    for start in range(0, len(numbers), length):
        values = _apply(take_each, numbers[start : start + length], values, leaves)
    result: Carry = tree_unflatten(values, structure)
    return result


Take = Callable[[range, list[Tensor]], list[Tensor]]


def _apply(take: Take, part: range, values: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    results = _Recomputed.apply(take, part, leaves, *values, *leaves)  # type: ignore[no-untyped-call]
    return list(results)


class _Recomputed(torch.autograd.Function):
    """``take(part, values)``, of which only ``values`` and the random state are kept."""

    @staticmethod
    def forward(
        ctx: Any, take: Take, part: range, leaves: list[Tensor], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        values = tensors[: len(tensors) - len(leaves)]
        ctx.take, ctx.part, ctx.leaves = take, part, leaves
        ctx.random = torch.get_rng_state(), *get_device_states(*values)
        ctx.save_for_backward(*values)
        return tuple(take(part, list(values)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        values = [value.detach().requires_grad_() for value in ctx.saved_tensors]
        host, devices, states = ctx.random
        with torch.enable_grad(), torch.random.fork_rng(devices):
            torch.set_rng_state(host)
            set_device_states(devices, states)
            results = ctx.take(ctx.part, values)
        # The graph that steps share, from the leaves to what the loss is made of, stays.
        gradients = torch.autograd.grad(
            results, [*values, *ctx.leaves], cotangents, retain_graph=True, allow_unused=True
        )
        return None, None, None, *gradients
