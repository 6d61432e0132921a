"""Small bilevel problems from papers, with their constraints and known solutions.

``GROUPS`` has them by kind of constraint, ``PUBLISHED`` all of them by name: the set that ``solve``
was developed on. ``HELD_OUT_GROUPS`` and ``HELD_OUT`` are other problems, which were first solved
when it was written.
"""

from __future__ import annotations

from collections.abc import Mapping

from fewshot_blo.studies.published.boxes import BOXES, MOVING_BOXES
from fewshot_blo.studies.published.coupled import COUPLED
from fewshot_blo.studies.published.equalities import EQUALITIES
from fewshot_blo.studies.published.held_out_jumps import HELD_OUT_JUMPS
from fewshot_blo.studies.published.held_out_linear import HELD_OUT_LINEAR
from fewshot_blo.studies.published.held_out_nonlinear import HELD_OUT_NONLINEAR
from fewshot_blo.studies.published.held_out_outrata import HELD_OUT_OUTRATA
from fewshot_blo.studies.published.held_out_quadratic import HELD_OUT_QUADRATIC
from fewshot_blo.studies.published.linear import LINEAR
from fewshot_blo.studies.published.nonconvex import NONCONVEX
from fewshot_blo.studies.published.nonlinear import NONLINEAR
from fewshot_blo.studies.published.plain import as_problem
from fewshot_blo.studies.published.problem import Bounds, Point, PublishedProblem
from fewshot_blo.studies.published.quadratic import QUADRATIC
from fewshot_blo.studies.published.unconstrained import UNCONSTRAINED

GROUPS: Mapping[str, tuple[PublishedProblem, ...]] = {
    "no constraints": UNCONSTRAINED,
    "boxes": BOXES,
    "bounds that depend on u": MOVING_BOXES,
    "linear inner problem": LINEAR,
    "quadratic inner problem, linear inequalities": QUADRATIC,
    "nonlinear inequalities": NONLINEAR,
    "outer constraints of u and v": COUPLED,
    "equalities": EQUALITIES,
    "inner problem not convex": NONCONVEX,
}

PUBLISHED: Mapping[str, PublishedProblem] = {
    problem.name: problem for group in GROUPS.values() for problem in group
}

HELD_OUT_GROUPS: Mapping[str, tuple[PublishedProblem, ...]] = {
    "all linear": HELD_OUT_LINEAR,
    "inner problem linear in v": HELD_OUT_JUMPS,
    "quadratic inner problem": (*HELD_OUT_QUADRATIC, *HELD_OUT_OUTRATA),
    "nonlinear inner problem": HELD_OUT_NONLINEAR,
}

HELD_OUT: Mapping[str, PublishedProblem] = {
    problem.name: problem for group in HELD_OUT_GROUPS.values() for problem in group
}

__all__ = [
    "GROUPS",
    "HELD_OUT",
    "HELD_OUT_GROUPS",
    "PUBLISHED",
    "Bounds",
    "Point",
    "PublishedProblem",
    "as_problem",
]
