"""Inequality constraints of the outer problem, by slack variables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.solving.problem import PlainProblem

Inequality = Callable[[Mapping[str, Tensor], Params], Tensor]
"""``(v, u)`` to the entries of h, ``[m]``, that must not be positive."""


def with_inequalities(
    problem: PlainProblem,
    inequality: Inequality,
    *,
    weight: float,
    multipliers: Tensor | None = None,
) -> PlainProblem:
    """``min over s of F + <μ, h + s²> + γ/2 |h + s²|²`` in the place of F.

    The slack variables s are solved for: ``s² = max(-h - μ/γ, 0)``, which leaves
    ``F + (max(μ + γ h, 0)² - μ²) / (2γ)``. As variables of their own they would make the objective
    stiff, with a curvature of ``4 γ s²``.

    At a fixed μ an active constraint is missed by ``(μ* - μ) / γ``: solve, take
    ``next_multipliers`` and solve again, and the miss falls by a factor each time.

    Args:
        problem: the problem without the constraint; its outer variables are shared.
        inequality: h, of v and u.
        weight: γ, positive.
        multipliers: μ ``[m]``, not negative; zeros by default.

    Raises:
        ConfigurationError: if the weight is not positive, or h is no vector.

    Source: Mehra & Hamm (arXiv 1911.03432), inequality constraints by slack variables; solved for
    and with multipliers: Nocedal & Wright, "Numerical Optimization", chapter 17.
    """
    if not weight > 0:
        raise ConfigurationError(f"the weight of the inequality is {weight}: it must be positive")
    with torch.no_grad():
        h = inequality(problem.inner, problem.outer)
    if h.ndim != 1:
        raise ConfigurationError(
            f"the inequality has shape {list(h.shape)}: it must return a vector, [1] for one"
        )
    mu = torch.zeros_like(h) if multipliers is None else multipliers.detach()

    def outer_loss(v: Mapping[str, Tensor], u: Params, *batch: Any) -> Tensor:
        pushed = (mu + weight * inequality(v, u)).clamp(min=0)
        penalty = (pushed.square() - mu.square()).sum() / (2 * weight)
        return problem.outer_loss(v, u, *batch) + penalty

    return replace(problem, outer_loss=outer_loss)


@torch.no_grad()
def next_multipliers(
    problem: PlainProblem,
    inequality: Inequality,
    inner: Mapping[str, Tensor],
    *,
    weight: float,
    multipliers: Tensor | None = None,
) -> Tensor:
    """``max(μ + γ h, 0)``, which nears the multipliers of the solution.

    Args:
        problem: solved, with its outer variables as they were found.
        inequality: h.
        inner: v as it was found.
        weight: γ.
        multipliers: μ of the problem that was solved; zeros by default.
    """
    h = inequality(inner, problem.outer)
    mu = torch.zeros_like(h) if multipliers is None else multipliers
    return (mu + weight * h).clamp(min=0)
