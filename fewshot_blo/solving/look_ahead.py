"""How far u is from a stationary point, by two exact hypergradients a little apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch

from fewshot_blo.bilevel import Bilevel, TaskParams
from fewshot_blo.errors import DivergenceError
from fewshot_blo.hypergrad import Implicit
from fewshot_blo.solving.constraints import Constraint
from fewshot_blo.solving.points import copies, inner_product, move, norm, projected

_LENGTH = 1e-3
"""Of the step to the second one, relative to ``1 + |u|``."""

_ROUNDING = 0.6
"""Exponent of the machine's precision, of a fall of F relative to ``1 + |F|`` that is rounding."""


def distance_ahead(
    problem: Bilevel, inner: TaskParams, constraints: Mapping[str, Constraint]
) -> float:
    """The distance relative to ``1 + |u|`` along the projected negative hypergradient.

    Implicit differentiation gives the slope of F at u and at a point a short step further, and the
    distance is where the line through both is zero: infinite where F falls faster there. Steps of
    an optimizer cannot tell this where it has made them short. The variables are as before in the
    end.

    Args:
        problem: of one task, without constraints of the inner problem.
        inner: v, ``[1, ...]``.
        constraints: sets of outer variables, by name.
    """
    exact = Implicit()
    here = copies(problem.outer)
    size = 1 + norm(here)
    try:
        first = exact.hypergradient(problem, replace(exact.init(), inner=inner))
        first.check_finite("Implicit")
        slope_size = norm(first.gradient)
        length = _LENGTH * size / slope_size if slope_size > 0 else 0.0
        downhill = {name: p - length * first.gradient[name].detach() for name, p in here.items()}
        ahead = projected(downhill, constraints)
        move(problem.outer, ahead)
        second = exact.hypergradient(problem, replace(exact.init(), inner=first.inner))
        second.check_finite("Implicit")
    except DivergenceError:
        return math.inf
    finally:
        move(problem.outer, here)
    moved = {name: p - here[name] for name, p in ahead.items()}
    slope, later = inner_product(first.gradient, moved), inner_product(second.gradient, moved)
    loss = float(first.outer_loss.detach().mean())
    rounding = torch.finfo(first.outer_loss.dtype).eps ** _ROUNDING * (1 + abs(loss))
    if slope >= -rounding:
        return 0.0
    return math.inf if not later > slope else -slope / (later - slope) * norm(moved) / size
