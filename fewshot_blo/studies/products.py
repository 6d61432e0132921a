"""What a hypergradient costs, by counting: gradients of the losses and Hessian products."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, TaskParams
from fewshot_blo.hypergrad import Strategy
from fewshot_blo.solving.problem import PlainProblem


class Passes(NamedTuple):
    """Of one hypergradient, on a batch each where there are batches.

    Attributes:
        gradients: evaluations of F or G with a gradient over v, u or both.
        products: of a vector with ``G_vv``, ``G_uv`` or both in one pass.
    """

    gradients: int
    products: int


def count_passes(problem: PlainProblem, strategy: Strategy) -> Passes:
    """Counts what one hypergradient takes, without what its unset settings are chosen by.

    Args:
        problem: the problem; the hypergradient is computed at its initial variables.
        strategy: how the hypergradient is computed.
    """
    start = problem.at(0)
    return passes_of_step(start, strategy.settled(start))


def passes_of_step(problem: Bilevel, strategy: Strategy) -> Passes:
    """Counts what the first hypergradient of T tasks takes; a pass goes over all of them at once.

    Args:
        problem: the tasks, such as ``bind`` of a few-shot problem returns them; the graphs of their
            initial parameters are freed.
        strategy: how the hypergradient is computed, with its settings set.
    """
    first = next(iter(problem.inner_init))  # A pass goes through all parameters or none.
    gradients = products = 0

    def count_gradient() -> None:
        nonlocal gradients
        gradients += torch.is_grad_enabled()

    def count(_: Tensor) -> None:
        nonlocal products
        products += 1

    def watch(gradient: Tensor) -> None:
        if gradient.requires_grad:
            gradient.register_hook(count)

    def inner_loss(v: TaskParams) -> Tensor:
        count_gradient()
        seen = v[first].view_as(v[first])
        if seen.requires_grad:
            seen.register_hook(watch)
        return problem.inner_loss({**v, first: seen})

    def outer_loss(v: TaskParams) -> Tensor:
        count_gradient()
        return problem.outer_loss(v)

    counted = replace(problem, inner_loss=inner_loss, outer_loss=outer_loss)
    strategy.hypergradient(counted, strategy.init())
    return Passes(gradients, products)
