"""A published problem as one for ``solve``."""

from __future__ import annotations

from collections.abc import Mapping

from fewshot_blo.solving.constraints import Box, Constraint
from fewshot_blo.solving.problem import Limit, PlainProblem
from fewshot_blo.studies.published.problem import Function, PublishedProblem


def as_problem(published: PublishedProblem) -> tuple[PlainProblem, Mapping[str, Constraint]]:
    """The problem with the variables ``u`` and ``v``, and the boxes that they stay in."""
    start, sets = published.start, dict[str, Constraint]()
    if published.outer_bounds is not None:
        sets["u"] = Box(*published.outer_bounds)
    if (bounds := published.inner_bounds) is not None:
        if published.inner_bounds_move:
            sets["v"] = Box(lambda u: bounds(u["u"]).lower, lambda u: bounds(u["u"]).upper)
        else:
            sets["v"] = Box(*bounds(start.u))
    problem = PlainProblem(
        {"u": start.u.clone()},
        {"v": start.v.clone()},
        lambda v, u: published.inner_loss(v["v"], u["u"]),
        lambda v, u: published.outer_loss(v["v"], u["u"]),
        inner_equalities=_named(published.inner_equalities),
        inner_inequalities=_named(published.inner_inequalities),
        outer_equalities=_named(published.outer_equalities),
        outer_inequalities=_named(published.outer_inequalities),
    )
    return problem, sets


def _named(function: Function | None) -> Limit | None:
    return None if function is None else lambda v, u: function(v["v"], u["u"])
