"""Whether F is lower at other outer variables than at a solution: problems with inner constraints
often have several local ones."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fewshot_blo.errors import DivergenceError
from fewshot_blo.hypergrad.constrained import scales_of, solved_inner
from fewshot_blo.solving.constraints import Constraint
from fewshot_blo.solving.limits import OuterLimits
from fewshot_blo.solving.points import copies, move, norm, projected
from fewshot_blo.solving.problem import PlainProblem, unstacked

PROBES = 24
"""Random outer variables that are looked at."""

_SPREAD = (0.3, 1.0, 3.0, 10.0)
"""Standard deviations of them, each relative to ``1 + |(u, v)|`` and to ``1 + |u|``, in turn."""

_SMOOTHING = 1e-5
_LOWER = 1e-3
"""By how much F, relative to 1 + |F|, has to be lower."""


def lower_elsewhere(
    problem: PlainProblem,
    inner: Mapping[str, Tensor],
    sets: tuple[Mapping[str, Constraint], Mapping[str, Constraint]],
    limits: OuterLimits,
) -> dict[str, Tensor] | None:
    """The best of some random outer variables, if F is lower there; None else.

    Violated outer constraints count with ten times one plus the largest multiplier. The outer
    variables are as before in the end.

    Args:
        problem: with its outer variables at the solution.
        inner: v of the solution.
        sets: of outer and of inner variables, by name.
        limits: with the multipliers of the solution.
    """
    outer_sets, inner_sets = sets
    weight = 10 * (1 + max((float(x.abs().max()) for x in limits.multipliers.values()), default=0))
    here = copies(problem.outer)
    sizes = 1 + math.hypot(norm(here), norm(inner)), 1 + norm(here)
    generator = torch.Generator().manual_seed(0)

    def value() -> float:
        bilevel = problem.at(0, inner_sets)
        start = {name: p.detach()[None] for name, p in inner.items()}
        scales = scales_of(bilevel, start)
        found = solved_inner(bilevel, start, _SMOOTHING, scales=scales)
        figures = limits.figures(problem, unstacked(found.params))
        violation = figures.get("outer/violation", 0.0)
        with torch.no_grad():
            loss = float(bilevel.outer_loss(found.params))
        return loss + found.excess + weight * violation

    try:
        lowest = value()
        lowest, best = lowest - _LOWER * (1 + abs(lowest)), None
        for number in range(PROBES):
            spread = _SPREAD[number // 2 % len(_SPREAD)] * sizes[number % 2]
            moves = {
                name: spread * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
                for name, p in here.items()
            }
            u = projected(_into(outer_sets, here, moves), outer_sets)
            move(problem.outer, u)
            try:
                loss = value()
            except DivergenceError:
                continue
            if loss < lowest:
                lowest, best = loss, u
    finally:
        move(problem.outer, here)
    return best


def _into(
    sets: Mapping[str, Constraint], here: Mapping[str, Tensor], moves: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The moved variables; where a set cuts a move off, as at its border, with the opposite one."""
    there = {name: p + moves[name] for name, p in here.items()}
    kept = projected(there, sets)
    return {n: torch.where(kept[n] == there[n], there[n], p - moves[n]) for n, p in here.items()}
