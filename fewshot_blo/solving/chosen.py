"""Which outer optimizer is used where none is named, and what is said of what was chosen."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fewshot_blo.bilevel import Bilevel
from fewshot_blo.hypergrad import Strategy
from fewshot_blo.solving import limited_memory
from fewshot_blo.solving.constraints import Constraint
from fewshot_blo.solving.descent import Backtracking, SpectralDescent
from fewshot_blo.solving.limited_memory import LimitedMemory
from fewshot_blo.solving.problem import PlainProblem
from fewshot_blo.solving.quasi_newton import MOST_VARIABLES, QuasiNewton


def said(chosen: Mapping[str, float], strategy: Strategy, outer: Backtracking | None) -> str:
    """One line on what was chosen; empty for nothing.

    Args:
        chosen: settings of the strategy, by name.
        strategy: with its inner steps.
        outer: the outer optimizer where it was chosen.
    """
    parts = [f"{name} {value:.4g}" for name, value in chosen.items()]
    if strategy.inner.steps is None:
        parts.append("inner steps until the inner problem is solved")
    if strategy.inner.rule is None:
        parts.append("inner steps by measured curvature")
    if outer is not None:
        parts.append("outer steps by measured curvature")
    return f"chosen: {', '.join(parts)}" if parts else ""


def chosen_optimizer(
    problem: PlainProblem, bilevel: Bilevel, strategy: Strategy, sets: Mapping[str, Constraint]
) -> Backtracking:
    """BFGS for few variables, L-BFGS for more that are in no sets, else spectral descent.

    The former two need hypergradients that are derivatives of the outer loss beside them. With
    constraints of the inner problem, F as a function of u has sharp bends.

    Args:
        problem: whose outer variables are optimised.
        bilevel: the problem of one outer step.
        strategy: of the hypergradient.
        sets: of outer variables, by name.
    """
    variables = list(problem.outer.values())
    shapes = {name: p.shape for name, p in problem.outer.items()}
    sizes = [p.numel() for p in variables]
    if not strategy.is_derivative:
        return SpectralDescent(variables)
    if sum(sizes) > MOST_VARIABLES:
        few = sum(sizes) <= limited_memory.MOST_VARIABLES and not sets
        return LimitedMemory(variables) if few else SpectralDescent(variables)
    bends = bilevel.constraints is not None and strategy.bears == "all"

    def joined(flat: Tensor, which: str) -> Tensor:
        parts = zip(shapes.items(), torch.split(flat, sizes), strict=True)
        own = [
            getattr(sets[name], which)(part.reshape(shape))
            for (name, shape), part in parts
            if name in sets
        ]
        return torch.cat([flat[:0], *own])

    return QuasiNewton(
        variables,
        lambda x: joined(x, "equalities"),
        lambda x: joined(x, "inequalities"),
        for_bends=bends,
    )
