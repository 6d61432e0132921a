"""Convex inner problems with nonlinear inequalities."""

from __future__ import annotations

from math import inf, sqrt

import torch

from fewshot_blo.studies.published.problem import (
    Bounds,
    PublishedProblem,
    at_least,
    between,
    fixed,
    point,
    vector,
)

_GOLDEN = (sqrt(5) - 1) / 2

NONLINEAR = (
    PublishedProblem(
        name="Bard1988Ex3",
        source="Bard (1988), Convex two-level optimization, Math. Programming 40, example 3; "
        "read in BOLIB; BASBLib b_1984_02 quotes the point",
        outer_loss=lambda v, u: -(u[0] ** 2) - 3 * u[1] - 4 * v[0] + v[1] ** 2,
        inner_loss=lambda v, u: 2 * u[0] ** 2 + v[0] ** 2 - 5 * v[1],
        start=point((0.0, 1.0), (4.0, 1.0)),
        solution=point((0.0, 2.0), (1.875, 0.90625)),
        value=-12.6787109375,
        published_value=-12.68,
        outer_bounds=at_least(0, 2),
        inner_bounds=fixed(at_least(0, 2)),
        outer_inequalities=lambda v, u: u[:1] ** 2 + 2 * u[1:] - 4,
        inner_inequalities=lambda v, u: torch.cat(
            [
                -(u[:1] ** 2) + 2 * u[:1] - u[1:] ** 2 + 2 * v[:1] - v[1:] - 3,
                -u[1:] - 3 * v[:1] + 4 * v[1:] + 4,
            ]
        ),
        remarks="The inner constraints are linear in v and quadratic in u. The inner problem is "
        "not feasible for every u that the outer constraints allow.",
    ),
    PublishedProblem(
        name="AllendeStill2013",
        source="Allende & Still (2013), Solving bilevel programs with the KKT-approach, Math. "
        "Programming 138; read in BOLIB",
        outer_loss=lambda v, u: (u - 1).square().sum() + v.square().sum(),
        inner_loss=lambda v, u: v.square().sum() - 2 * (u * v).sum(),
        start=point((0.0, 0.0), (1.0, 1.0)),
        solution=point((0.5, 0.5), (0.5, 0.5)),
        value=1.0,
        published_value=1.0,
        outer_bounds=Bounds(vector(0, 0), vector(2, inf)),
        inner_inequalities=lambda v, u: (v - 1) ** 2 - 0.25,
        remarks="BOLIB also has v >= 0 in the outer problem, which the inner constraints imply.",
    ),
    PublishedProblem(
        name="Dempe1992b",
        source="Dempe (1992), A necessary and a sufficient optimality condition for bilevel "
        "programming problems, Optimization 25; read in BASBLib d_1992_01",
        outer_loss=lambda v, u: (u[0] - 3.5) ** 2 + (v[0] + 4) ** 2,
        inner_loss=lambda v, u: (v[0] - 3) ** 2,
        start=point((4.0,), (1.0,)),
        solution=point((1.0,), (1.0,)),
        value=31.25,
        published_value=31.25,
        outer_bounds=between(1, 10),
        inner_bounds=fixed(between(1, 10)),
        inner_inequalities=lambda v, u: v**2 - u,
        remarks="The hypergradient is zero at the solution, which is on the bound u >= 1. BOLIB "
        "states the problem without the bounds: there u = v = 0 has F = 28.25.",
    ),
    PublishedProblem(
        name="Outrata1993Ex32",
        source="Outrata (1993), example 3.2; read in BOLIB",
        outer_loss=lambda v, u: 0.5 * (v - vector(3, 4)).square().sum(),
        inner_loss=lambda v, u: (
            0.5 * (1 + 0.2 * u[0]) * v[0] ** 2
            + 0.5 * (1 + 0.1 * u[0]) * v[1] ** 2
            - (3 + 1.333 * u[0]) * v[0]
            - u[0] * v[1]
        ),
        start=point((1.0,), (0.0, 0.0)),
        solution=point((4.06040642790215,), (2.68224442958315, 1.48714675226097)),
        value=3.20770002360175,
        published_value=3.208,
        outer_bounds=at_least(0),
        inner_bounds=fixed(at_least(0, 2)),
        inner_inequalities=lambda v, u: torch.cat(
            [
                -0.333 * v[:1] + v[1:] + 0.1 * u - 1,
                v.square().sum() - 0.1 * u - 9,
            ]
        ),
    ),
    PublishedProblem(
        name="Colson2002BIPA5",
        source="Colson (2002), BIPA, Cahiers du GERAD G-2002-37, problem BIPA5; read in BOLIB and "
        "BASBLib c_2002_05",
        outer_loss=lambda v, u: (u[0] - v[1]) ** 4 + (v[0] - 1) ** 2 + (v[0] - v[1]) ** 2,
        inner_loss=lambda v, u: (
            2 * u[0] + v[0].exp() + v[0] ** 2 + 4 * v[0] + 2 * v[1] ** 2 - 6 * v[1]
        ),
        start=point((1.0,), (1.0, 1.0)),
        solution=point((1.94052906318212,), (0.0, 1.21099577172982)),
        value=2.74976763506197,
        published_value=2.75,
        outer_bounds=at_least(0),
        inner_bounds=fixed(Bounds(vector(0, 0), vector(4, 2))),
        inner_inequalities=lambda v, u: torch.stack(
            [
                6 * u[0] + v[0] ** 2 + v[1].exp() - 15,
                5 * u[0] + v[0] ** 4 - v[1] - 25,
            ]
        ),
    ),
    PublishedProblem(
        name="FloudasZlobec1998",
        source="Floudas & Zlobec (1998), Optimality and duality in parametric convex "
        "lexicographic programming, section 4.1; read in BOLIB and BASBLib fz_1998_01",
        outer_loss=lambda v, u: u[0] ** 3 * v[0] + v[1],
        inner_loss=lambda v, u: -v[1],
        start=point((0.5,), (0.5, 0.5)),
        solution=point((1.0,), (0.0, 1.0)),
        value=1.0,
        published_value=1.0,
        outer_bounds=between(0, 1),
        inner_bounds=fixed(Bounds(vector(-1, 0), vector(1, 100))),
        inner_inequalities=lambda v, u: torch.stack(
            [u[0] * v[0] - 10, v[0] ** 2 + u[0] * v[1] - 1]
        ),
        inner_unique=False,
        remarks="For u < 1/100 the inner solution is not unique: v[1] = 100, and v[0] is free in "
        "an interval. For u > 1/100 it is v = (0, 1 / u).",
    ),
    PublishedProblem(
        name="NieWangYe2017Ex54",
        source="Nie, Wang & Ye (2017), Bilevel polynomial programs and semidefinite relaxation "
        "methods, SIAM J. Optim. 27, example 5.4; read in BOLIB and BASBLib nwj_2017_03",
        outer_loss=lambda v, u: (
            u[0] ** 2 * v[0] + u[1] * v[1] + u[2] * v[2] ** 2 + u[3] * v[3] ** 2
        ),
        inner_loss=lambda v, u: v[0] ** 2 - v[1] * (u[0] + u[1]) - (v[2] + v[3]) * (u[2] + u[3]),
        start=point((0.3, 0.3, 0.3, 0.3), (0.5, 0.1, 0.1, 0.1)),
        solution=point(
            (0.0, 0.0, -sqrt(1 / 2), -sqrt(1 / 2)),
            (_GOLDEN, 0.0, -sqrt(_GOLDEN / 2), -sqrt(_GOLDEN / 2)),
        ),
        value=-_GOLDEN / sqrt(2),
        published_value=-0.437,
        outer_inequalities=lambda v, u: torch.stack(
            [u.square().sum() - 1, v[0] * v[1] - u[0], v[2] * v[3] - u[2] ** 2]
        ),
        inner_inequalities=lambda v, u: torch.stack(
            [v.square().sum() - 1, v[1:].square().sum() - v[0]]
        ),
        remarks="The outer constraints are not convex and contain v.",
    ),
)
