"""How far u is from a stationary point, by two exact hypergradients a little apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch

from fewshot_blo.bilevel import Bilevel, OuterStep, TaskParams
from fewshot_blo.errors import DivergenceError
from fewshot_blo.hypergrad import Implicit
from fewshot_blo.solving.constraints import Constraint
from fewshot_blo.solving.points import copies, inner_product, move, norm, projected

_LENGTH = 1e-3
"""Of the step to the second one, relative to ``1 + |u|``."""

_PROBES, _PROBE = 4, 1e-2
"""Random directions that are looked at where there is no slope, and how far, likewise."""

_ROUNDING = 0.6
"""Exponent of the machine's precision, of a fall of F relative to ``1 + |F|`` that is rounding."""


def distance_ahead(
    problem: Bilevel, inner: TaskParams, constraints: Mapping[str, Constraint]
) -> float:
    """The distance relative to ``1 + |u|`` along the projected negative hypergradient.

    Implicit differentiation gives the slope of F at u and at a point a short step further, and the
    distance is where the line through both is zero: infinite where F falls faster there, and where
    it is flat at u and lower a short way off in one of a few random directions. Steps of an
    optimizer cannot tell this where it has made them short. The variables are as before in the end.

    Args:
        problem: of one task, without constraints of the inner problem.
        inner: v, ``[1, ...]``.
        constraints: sets of outer variables, by name.
    """
    here = copies(problem.outer)
    size = 1 + norm(here)
    try:
        first = exact_step(problem, inner)
        slope_size = norm(first.gradient)
        length = _LENGTH * size / slope_size if slope_size > 0 else 0.0
        downhill = {name: p - length * first.gradient[name].detach() for name, p in here.items()}
        ahead = projected(downhill, constraints)
        move(problem.outer, ahead)
        second = exact_step(problem, first.inner)
    except DivergenceError:
        return math.inf
    finally:
        move(problem.outer, here)
    moved = {name: p - here[name] for name, p in ahead.items()}
    slope, later = inner_product(first.gradient, moved), inner_product(second.gradient, moved)
    loss = float(first.outer_loss.detach().mean())
    rounding = torch.finfo(first.outer_loss.dtype).eps ** _ROUNDING * (1 + abs(loss))
    if slope >= -rounding:
        return math.inf if _falls_nearby(problem, first, constraints, rounding) else 0.0
    return math.inf if not later > slope else -slope / (later - slope) * norm(moved) / size


def exact_step(problem: Bilevel, inner: TaskParams) -> OuterStep:
    """With the hypergradient of implicit differentiation, at the problem's u, solved from v.

    Raises:
        DivergenceError: if a loss or the hypergradient is not finite.
    """
    method = Implicit()
    step = method.hypergradient(problem, replace(method.init(), inner=inner))
    step.check_finite("Implicit")
    return step


def _falls_nearby(
    problem: Bilevel, step: OuterStep, constraints: Mapping[str, Constraint], rounding: float
) -> bool:
    """Whether F is lower a short way off in a random direction, as at a maximum or a saddle point.

    By the slopes at both ends. The variables are as before in the end.
    """
    here = copies(problem.outer)
    generator = torch.Generator().manual_seed(0)
    try:
        for _ in range(_PROBES):
            drawn = {n: torch.randn(p.shape, generator=generator).to(p) for n, p in here.items()}
            length = _PROBE * (1 + norm(here)) / norm(drawn)
            at = projected({n: p + length * drawn[n] for n, p in here.items()}, constraints)
            move(problem.outer, at)
            moved = {name: p - here[name] for name, p in at.items()}
            try:
                there = exact_step(problem, step.inner)
            except DivergenceError:
                continue
            slopes = inner_product(step.gradient, moved) + inner_product(there.gradient, moved)
            if slopes / 2 < -rounding:
                return True
    finally:
        move(problem.outer, here)
    return False
