"""How many Hessian products a hypergradient takes, by counting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params
from fewshot_blo.hypergrad import Strategy
from fewshot_blo.problems.plain import PlainProblem


def hessian_products(problem: PlainProblem, strategy: Strategy) -> int:
    """Products of a vector with ``G_vv``, ``G_uv`` or both in one pass, of one hypergradient.

    Args:
        problem: at its start.
        strategy: how the hypergradient is computed.
    """
    count = _Count()
    first = next(iter(problem.inner))  # A pass goes through all parameters or none.

    def inner_loss(v: Mapping[str, Tensor], u: Params, *batch: Any) -> Tensor:
        seen: Tensor = _Parameter.apply(v[first], count)  # type: ignore[no-untyped-call]
        return problem.inner_loss({**v, first: seen}, u, *batch)

    counted = replace(problem, inner_loss=inner_loss)
    strategy.hypergradient(counted.at(0), strategy.init())
    return count.products


@dataclass
class _Count:
    products: int = 0


class _Parameter(torch.autograd.Function):
    """The identity, whose gradient is watched."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: _Count) -> Tensor:
        ctx.count = count
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _Gradient.apply(gradients[0], ctx.count), None  # type: ignore[no-untyped-call]


class _Gradient(torch.autograd.Function):
    """The identity on a gradient; a backward pass through it is a Hessian product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: _Count) -> Tensor:
        ctx.count = count
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        ctx.count.products += 1
        return gradients[0], None
