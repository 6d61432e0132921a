"""The certificate of an outer step of a run, and what a record says of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from fewshot_blo.bilevel import Bilevel, OuterStep, Params
from fewshot_blo.errors import DivergenceError
from fewshot_blo.hypergrad import Strategy
from fewshot_blo.solving.certificate import Certificate
from fewshot_blo.solving.certify import certify
from fewshot_blo.solving.constraints import Constraint
from fewshot_blo.solving.look_ahead import distance_ahead
from fewshot_blo.solving.runaway import falls_on

_PRODUCTS, _PRODUCTS_AT_THE_END = 10, 100
"""Hessian products of each measurement of a record, and of the last one."""


def measured(
    problem: Bilevel,
    step: OuterStep,
    constraints: Mapping[str, Constraint],
    strategy: Strategy,
    *,
    sampled: bool,
    last: bool,
    ends: bool,
    bends: bool,
    violation: float,
    origin: Params,
) -> Certificate:
    """Measures where the step was computed.

    Args:
        problem: of the step.
        step: with v and the hypergradient there.
        constraints: sets of outer variables, by name.
        strategy: of the hypergradient.
        sampled: whether losses are of one batch.
        last: whether no further step is taken.
        ends: whether u seems to have converged.
        bends: whether F may have several local solutions.
        violation: of the worst outer constraint.
        origin: where u started.
    """
    constrained = problem.constraints is not None
    try:
        found = certify(
            problem,
            step.inner,
            constraints,
            step.gradient,
            is_exact=constrained and strategy.bears == "all",
            elsewhere=ends and bends,
            products=_PRODUCTS_AT_THE_END if ends or last else _PRODUCTS,
        )
    except DivergenceError as error:
        nothing = math.nan
        none = Certificate(nothing, nothing, nothing, nothing, nothing, nothing, failure=str(error))
        return replace(none, outer_violation=violation)
    found = replace(found, sampled=sampled, outer_violation=violation)
    if not constrained and (ends or (last and found.doubts())):
        ahead = distance_ahead(problem, step.inner, constraints)
        found = replace(found, outer_distance=ahead)
    if ends and not (constrained or sampled or found.doubts(strict=True)):
        falls = falls_on(problem, step.inner, constraints, origin)
        found = replace(found, falls_on=float(falls))
    return found


def record_of(step: OuterStep, number: int, certificate: Certificate | None) -> dict[str, float]:
    """Losses of an outer step, what its strategy measured, and its certificate, by name."""
    squared = sum(float(g.double().square().sum()) for g in step.gradient.values())
    record = {
        "step": number,
        "loss/outer": float(step.outer_loss),
        "loss/inner": float(step.inner_loss),
        "hypergradient/norm": squared**0.5,
        **{f"strategy/{name}": float(x.mean()) for name, x in step.figures.items()},
    }
    return record | ({} if certificate is None else certificate.figures())
