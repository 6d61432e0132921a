"""Inner problems that are not convex."""

from __future__ import annotations

from math import inf, pi

import torch

from fewshot_blo.studies.published.problem import (
    Bounds,
    PublishedProblem,
    between,
    fixed,
    point,
    vector,
)

NONCONVEX = (
    PublishedProblem(
        name="MitsosBarton2006Ex310",
        source="Mitsos & Barton (2007), A test set for bilevel programs, example 3.10; read in "
        "BOLIB and BASBLib mb_2007_10",
        outer_loss=lambda v, u: v[0],
        inner_loss=lambda v, u: (
            u[0] * (16 * v[0] ** 4 + 2 * v[0] ** 3 - 8 * v[0] ** 2 - 1.5 * v[0] + 0.5)
        ),
        start=point((1.0,), (1.0,)),
        solution=point((1.0,), (0.5,)),
        value=0.5,
        published_value=0.5,
        convex_inner=False,
        outer_bounds=between(0.1, 1),
        inner_bounds=fixed(between(-1, 1)),
        solution_unique=False,
        remarks="Every u is a solution. Near v = -1/2 the inner problem has a local minimum.",
    ),
    PublishedProblem(
        name="MitsosBarton2006Ex314",
        source="Mitsos & Barton (2007), A test set for bilevel programs, example 3.14; read in "
        "BOLIB and BASBLib mb_2007_14",
        outer_loss=lambda v, u: (u[0] - 0.25) ** 2 + v[0] ** 2,
        inner_loss=lambda v, u: v[0] ** 3 / 3 - u[0] * v[0],
        start=point((1.0,), (1.0,)),
        solution=point((0.25,), (0.5,)),
        value=0.25,
        published_value=0.25,
        convex_inner=False,
        outer_bounds=between(-1, 1),
        inner_bounds=fixed(between(-1, 1)),
        inner_unique=False,
        remarks="At the solution v = -1 also solves the inner problem; for smaller u it is the "
        "only solution.",
    ),
    PublishedProblem(
        name="MitsosBarton2006Ex317",
        source="Mitsos & Barton (2007), A test set for bilevel programs, example 3.17; read in "
        "BOLIB and BASBLib mb_2007_17",
        outer_loss=lambda v, u: (u[0] + 0.5) ** 2 + 0.5 * v[0] ** 2,
        inner_loss=lambda v, u: 0.5 * u[0] * v[0] ** 2 + 0.25 * v[0] ** 4,
        start=point((1.0,), (1.0,)),
        solution=point((-0.25,), (0.5,)),
        value=0.1875,
        published_value=0.1875,
        convex_inner=False,
        outer_bounds=between(-1, 1),
        inner_bounds=fixed(between(-1, 1)),
        inner_unique=False,
        solution_unique=False,
        remarks="v = 1/2 and v = -1/2 are both solutions, and v = 0 is stationary.",
    ),
    PublishedProblem(
        name="Mirrlees1999",
        source="Mirrlees (1999), The theory of moral hazard and unobservable behaviour, Rev. Econ. "
        "Studies 66; read in BOLIB",
        outer_loss=lambda v, u: (u[0] - 2) ** 2 + (v[0] - 1) ** 2,
        inner_loss=lambda v, u: -u[0] * (-((v[0] + 1) ** 2)).exp() - (-((v[0] - 1) ** 2)).exp(),
        start=point((0.5,), (1.0,)),
        solution=point((1.0,), (0.957504024077269,)),
        value=1.00180590796963,
        published_value=1.002,
        convex_inner=False,
        inner_bounds=fixed(between(-2, 2)),
        inner_unique=False,
        remarks="At u = 1 the inner problem has two solutions, v and -v; for u > 1 it is the "
        "negative one. Conditions of stationarity alone give a wrong solution.",
    ),
    PublishedProblem(
        name="YeZhu2010Ex42",
        source="Ye & Zhu (2010), New necessary optimality conditions for bilevel programs, SIAM J. "
        "Optim. 20, example 4.2; read in BASBLib yz_2010_01",
        outer_loss=lambda v, u: (u[0] - 1) ** 2 + v[0] ** 2,
        inner_loss=lambda v, u: v[0] ** 3 - 3 * v[0],
        start=point((-1.0,), (-1.0,)),
        solution=point((1.0,), (1.0,)),
        value=1.0,
        published_value=1.0,
        convex_inner=False,
        outer_bounds=between(-3, 2),
        inner_bounds=lambda u: Bounds(u, torch.full_like(u, inf)),
        inner_bounds_move=True,
        inner_unique=False,
        remarks="At u = -2 both v = -2 and v = 1 solve the inner problem; below it is v = u.",
    ),
    PublishedProblem(
        name="SMD1",
        source="Sinha, Malo & Deb (2014), Test problem construction for single-objective bilevel "
        "optimization, Evol. Computation 22, p = r = 1, q = 2; read in HardTestProblems.jl",
        outer_loss=lambda v, u: u.square().sum() + v[:2].square().sum() + (u[1] - v[2].tan()) ** 2,
        inner_loss=lambda v, u: u[0] ** 2 + v[:2].square().sum() + (u[1] - v[2].tan()) ** 2,
        start=point((2.0, 2.0), (1.0, 1.0, 0.5)),
        solution=point((0.0, 0.0), (0.0, 0.0, 0.0)),
        value=0.0,
        published_value=0.0,
        convex_inner=False,
        outer_bounds=between(-5, 10, 2),
        inner_bounds=fixed(Bounds(vector(-5, -5, -pi / 2 + 1e-5), vector(10, 10, pi / 2 - 1e-5))),
        remarks="G has one stationary point for every u, but is not convex in v[2].",
    ),
)
