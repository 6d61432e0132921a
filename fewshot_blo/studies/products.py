"""Counts the Hessian-vector products of one hypergradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from fewshot_blo.bilevel import Params
from fewshot_blo.hypergrad import Strategy
from fewshot_blo.solving.problem import PlainProblem


def hessian_products(problem: PlainProblem, strategy: Strategy) -> int:
    """Number of passes of one hypergradient that multiply a vector by ``G_vv``, ``G_uv`` or both.

    Args:
        problem: the problem; the hypergradient is computed at its initial variables.
        strategy: how the hypergradient is computed.
    """
    first = next(iter(problem.inner))  # A pass reaches all parameters or none.
    products = 0

    def count(_: Tensor) -> None:
        nonlocal products
        products += 1

    def watch(gradient: Tensor) -> None:
        if gradient.requires_grad:
            gradient.register_hook(count)

    def inner_loss(v: Mapping[str, Tensor], u: Params, *batch: Any) -> Tensor:
        seen = v[first].view_as(v[first])
        if seen.requires_grad:
            seen.register_hook(watch)
        return problem.inner_loss({**v, first: seen}, u, *batch)

    counted = replace(problem, inner_loss=inner_loss)
    strategy.hypergradient(counted.at(0), strategy.init())
    return products
