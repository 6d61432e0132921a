"""Small bilevel problems from papers, with their constraints and known solutions.

``GROUPS`` has them by kind of constraint, ``PUBLISHED`` all of them by name.
"""

from __future__ import annotations

from collections.abc import Mapping

from fewshot_blo.studies.published.boxes import BOXES, MOVING_BOXES
from fewshot_blo.studies.published.coupled import COUPLED
from fewshot_blo.studies.published.equalities import EQUALITIES
from fewshot_blo.studies.published.linear import LINEAR
from fewshot_blo.studies.published.nonconvex import NONCONVEX
from fewshot_blo.studies.published.nonlinear import NONLINEAR
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

__all__ = ["GROUPS", "PUBLISHED", "Bounds", "Point", "PublishedProblem"]
