"""Boxes that do not depend on u, two-sided and one-sided, at either level."""

from __future__ import annotations

from math import inf

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

BOXES = (
    PublishedProblem(
        name="Bard1998Ex2",
        source="Bard (1998), Practical Bilevel Optimization; read in BASBLib b_1998_02",
        outer_loss=lambda v, u: 0.5 * ((u - vector(0.8, 0.2)).square().sum() + (v[0] - 1) ** 2),
        inner_loss=lambda v, u: 0.5 * v[0] ** 2 - v[0] - u[0] * v[0] + 2 * u[1] * v[0],
        start=point((0.5, 0.5), (0.5,)),
        solution=point((0.8, 0.2), (1.0,)),
        value=0.0,
        published_value=0.0,
        outer_bounds=between(0, 1, 2),
        inner_bounds=fixed(between(0, 1)),
    ),
    PublishedProblem(
        name="Bard1998Ex5",
        source="Bard (1998), Practical Bilevel Optimization; read in BASBLib b_1998_05",
        outer_loss=lambda v, u: (u[0] - 1) ** 2 + (v[0] - 1) ** 2,
        inner_loss=lambda v, u: 0.5 * v[0] ** 2 + 500 * v[0] - 50 * u[0] * v[0],
        start=point((5.0,), (1.0,)),
        solution=point((1.0,), (0.0,)),
        value=1.0,
        published_value=1.0,
        outer_bounds=between(-100, 100),
        inner_bounds=fixed(at_least(0)),
        remarks="BASBLib adds v <= 100, which is active for u >= 12 alone.",
    ),
    PublishedProblem(
        name="FalkLiu1995",
        source="Falk & Liu (1995), On bilevel programming, part I, Math. Programming 70; "
        "read in BOLIB",
        outer_loss=lambda v, u: (u - 1.5).square().sum() + v.square().sum() - 4.5,
        inner_loss=lambda v, u: (v - u).square().sum(),
        start=point((0.0, 0.0), (1.0, 1.0)),
        solution=point((0.75, 0.75), (0.75, 0.75)),
        value=-2.25,
        published_value=-2.1962,
        inner_bounds=fixed(between(0.5, 1.5, 2)),
        remarks="The published value is not the optimum of the problem as BOLIB states it: "
        "u = v = 3/4 in both entries has -2.25.",
    ),
    PublishedProblem(
        name="Yezza1996Ex31",
        source="Yezza (1996), First-order necessary optimality conditions for general bilevel "
        "programming problems, JOTA 89, example 3.1; read in BOLIB and BASBLib y_1996_02",
        outer_loss=lambda v, u: -(4 * u[0] - 3) * v[0] + 2 * u[0] + 1,
        inner_loss=lambda v, u: -(1 - 4 * u[0]) * v[0] - 2 * u[0] - 2,
        start=point((1.0,), (1.0,)),
        solution=point((0.25,), (0.0,)),
        value=1.5,
        published_value=1.5,
        outer_bounds=between(0, 1),
        inner_bounds=fixed(between(0, 1)),
        inner_unique=False,
        remarks="v jumps from 1 to 0 at u = 1/4, where every v in [0, 1] solves the inner problem.",
    ),
    PublishedProblem(
        name="MorganPatrone2006a",
        source="Morgan & Patrone (2006); read in BOLIB",
        outer_loss=lambda v, u: -(u[0] + v[0]),
        inner_loss=lambda v, u: u[0] * v[0],
        start=point((-0.4,), (0.5,)),
        solution=point((0.0,), (1.0,)),
        value=-1.0,
        published_value=-1.0,
        outer_bounds=between(-0.5, 0.5),
        inner_bounds=fixed(between(-1, 1)),
        inner_unique=False,
        remarks="v jumps from 1 to -1 at u = 0, where every v in [-1, 1] solves the inner problem.",
    ),
    PublishedProblem(
        name="HatzEtal2013",
        source="Hatz et al. (2013); read in BOLIB",
        outer_loss=lambda v, u: -u[0] + 2 * v[0] + v[1],
        inner_loss=lambda v, u: (u[0] - v[0]) ** 2 + v[1] ** 2,
        start=point((1.0,), (1.0, 1.0)),
        solution=point((0.0,), (0.0, 0.0)),
        value=0.0,
        published_value=0.0,
        inner_bounds=fixed(at_least(0, 2)),
        remarks="The solution is where the bound of v[0] becomes active, a kink of F(v(u), u).",
    ),
    PublishedProblem(
        name="HendersonQuandt1958",
        source="Henderson & Quandt (1958); read in BOLIB",
        outer_loss=lambda v, u: (0.5 * (u[0] + v[0]) - 95) * u[0],
        inner_loss=lambda v, u: (v[0] + 0.5 * u[0] - 100) * v[0],
        start=point((0.0,), (0.0,)),
        solution=point((280 / 3,), (80 / 3,)),
        value=-9800 / 3,
        published_value=-3266.67,
        outer_bounds=between(0, 200),
        inner_bounds=fixed(at_least(0)),
    ),
    PublishedProblem(
        name="SMD6",
        source="Sinha, Malo & Deb (2014), Test problem construction for single-objective bilevel "
        "optimization, Evol. Computation 22, p = q = r = 1, s = 2; read in HardTestProblems.jl",
        outer_loss=lambda v, u: (
            u.square().sum() - v[0] ** 2 + v[1] ** 2 + v[2] ** 2 - (u[1] - v[3]) ** 2
        ),
        inner_loss=lambda v, u: u[0] ** 2 + v[0] ** 2 + (v[2] - v[1]) ** 2 + (u[1] - v[3]) ** 2,
        start=point((3.0, -2.0), (1.0, 2.0, 3.0, 4.0)),
        solution=point((0.0, 0.0), (0.0, 0.0, 0.0, 0.0)),
        value=0.0,
        published_value=0.0,
        outer_bounds=between(-5, 10, 2),
        inner_bounds=fixed(between(-5, 10, 4)),
        inner_unique=False,
        remarks="Every v with v[1] = v[2] and the other entries right solves the inner problem.",
    ),
)

MOVING_BOXES = (
    PublishedProblem(
        name="Yezza1996Ex41",
        source="Yezza (1996), First-order necessary optimality conditions for general bilevel "
        "programming problems, JOTA 89, example 4.1; read in BOLIB",
        outer_loss=lambda v, u: 0.5 * (v[0] - 2) ** 2 + 0.5 * (u[0] - v[0] - 2) ** 2,
        inner_loss=lambda v, u: 0.5 * v[0] ** 2 + u[0] - v[0],
        start=point((0.5,), (0.5,)),
        solution=point((3.0,), (1.0,)),
        value=0.5,
        published_value=0.5,
        inner_bounds=lambda u: Bounds(torch.zeros_like(u), u),
        inner_bounds_move=True,
        remarks="The inner problem is feasible for u >= 0. BOLIB's start, u = v = -1, is not.",
    ),
    PublishedProblem(
        name="LamparielloSagratella2017Ex31",
        source="Lampariello & Sagratella (2017), A bridge between bilevel programs and Nash games, "
        "arXiv 1510.06695, example 3.1; read in BOLIB",
        outer_loss=lambda v, u: u[0] ** 2 + v[0] ** 2,
        inner_loss=lambda v, u: v[0],
        start=point((2.0,), (1.0,)),
        solution=point((1.0,), (0.0,)),
        value=1.0,
        published_value=1.0,
        outer_bounds=at_least(1),
        inner_bounds=lambda u: Bounds(1 - u, torch.full_like(u, inf)),
        inner_bounds_move=True,
    ),
)
