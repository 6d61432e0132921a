"""Held out: inner problems with nonlinear inequalities, or losses of a higher degree."""

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

_DEMPE_DUTTA = (
    "Dempe & Dutta (2012), Is bilevel programming a special case of a mathematical program with "
    "complementarity constraints?, Math. Programming 131, "
)

HELD_OUT_NONLINEAR = (
    PublishedProblem(
        name="Colson2002BIPA1",
        source="Colson (2002), BIPA, Cahiers du GERAD G-2002-37, problem BIPA1; read in BOLIB",
        outer_loss=lambda v, u: (10 - u[0]) ** 3 + (10 - v[0]) ** 3,
        inner_loss=lambda v, u: (u[0] + 2 * v[0] - 15) ** 4,
        start=point((4.0,), (10.0,)),
        solution=point((5.0,), (5.0,)),
        value=250.0,
        published_value=250.0,
        outer_bounds=between(0, 5),
        inner_bounds=fixed(between(0, 20)),
        outer_inequalities=lambda v, u: v - u,
        inner_inequalities=lambda v, u: u + v - 20,
        remarks="u = 5 alone is feasible. G has a zero second derivative at its minimum. BOLIB "
        "starts from u = 10, which the bounds do not allow.",
    ),
    PublishedProblem(
        name="Colson2002BIPA4",
        source="Colson (2002), BIPA, Cahiers du GERAD G-2002-37, problem BIPA4; read in BOLIB",
        outer_loss=lambda v, u: u[0] ** 2 + (v[0] - 10) ** 2,
        inner_loss=lambda v, u: u[0] ** 3 - u[0] ** 2 + u[0] + 2 * v[0] ** 3 - 2 * v[0],
        start=point((1.5,), (2.25,)),
        solution=point((0.0,), (sqrt(1 / 3),)),
        value=(sqrt(1 / 3) - 10) ** 2,
        published_value=88.79,
        outer_bounds=at_least(0),
        inner_bounds=fixed(at_least(0)),
        outer_inequalities=lambda v, u: u + 2 * v - 6,
        inner_inequalities=lambda v, u: -u + 2 * v - 3,
    ),
    PublishedProblem(
        name="DempeDutta2012Ex24",
        source=_DEMPE_DUTTA + "example 2.4; read in BOLIB",
        outer_loss=lambda v, u: (u[0] - 1) ** 2 + v[0] ** 2,
        inner_loss=lambda v, u: u[0] ** 2 * v[0],
        start=point((1.0,), (1.0,)),
        solution=point((1.0,), (0.0,)),
        value=0.0,
        published_value=0.0,
        inner_inequalities=lambda v, u: v**2,
        remarks="v = 0 alone is feasible, and no multipliers exist unless u = 0. The start is at "
        "the solution's u.",
    ),
    PublishedProblem(
        name="DempeDutta2012Ex31",
        source=_DEMPE_DUTTA + "example 3.1; read in BOLIB",
        outer_loss=lambda v, u: -v[1],
        inner_loss=lambda v, u: v[0] ** 2 + (v[1] + 1) ** 2,
        start=point((1.0, 1.0), (1.0, 1.0)),
        solution=point((1.0, 1.0), (0.0, 2.0)),
        value=-2.0,
        published_value=-1.0,
        outer_bounds=at_least(0, 2),
        outer_equalities=lambda v, u: v[:1] * v[1:],
        inner_inequalities=lambda v, u: torch.stack(
            [
                (v[0] - u[0]) ** 2 + (v[1] - u[0] - 1) ** 2 - 1,
                (v[0] + u[1]) ** 2 + (v[1] - u[1] - 1) ** 2 - 1,
            ]
        ),
        remarks="v is in two discs, which touch at v = (0, 2) for u = (1, 1), the start. As BOLIB "
        "states it that point is feasible and better than the published value.",
    ),
    PublishedProblem(
        name="SinhaMaloDeb2014TP3",
        source="Sinha, Malo & Deb (2014), problem TP3; read in BOLIB",
        outer_loss=lambda v, u: -(u[0] ** 2) - 3 * u[1] ** 2 - 4 * v[0] + v[1] ** 2,
        inner_loss=lambda v, u: 2 * u[0] ** 2 + v[0] ** 2 - 5 * v[1],
        start=point((1.0, 1.0), (1.0, 1.0)),
        solution=point((0.0, 2.0), (1.875, 0.90625)),
        value=-18.6787109375,
        published_value=-18.679,
        outer_bounds=at_least(0, 2),
        inner_bounds=fixed(at_least(0, 2)),
        outer_inequalities=lambda v, u: u[:1] ** 2 + 2 * u[1:] - 4,
        inner_inequalities=lambda v, u: torch.cat(
            [
                -(u[:1] ** 2) + 2 * u[:1] - u[1:] ** 2 + 2 * v[:1] - v[1:] - 3,
                -u[1:] - 3 * v[:1] + 4 * v[1:] + 4,
            ]
        ),
        remarks="Bard1988Ex3 with the square of u[1] in F, and from another start.",
    ),
    PublishedProblem(
        name="LamparielloSagratella2017Ex23",
        source="Lampariello & Sagratella (2017), A bridge between bilevel programs and Nash games, "
        "arXiv 1510.06695, example 2.3; read in BOLIB",
        outer_loss=lambda v, u: u[0],
        inner_loss=lambda v, u: (u[0] - v[0]) ** 2 + (v[1] + 1) ** 2,
        start=point((1.0,), (1.0, 1.0)),
        solution=point((-1.0,), (-1.0, 0.0)),
        value=-1.0,
        published_value=-1.0,
        outer_bounds=between(-1, 1),
        inner_bounds=fixed(Bounds(vector(-inf, 0), vector(inf, inf))),
        inner_inequalities=lambda v, u: v[:1] ** 3 - v[1:],
        remarks="With v[1] >= 0 the inner constraint has a convex feasible set, although it is not "
        "convex in v for v[0] < 0.",
    ),
    PublishedProblem(
        name="CalveteGale1999P1",
        source="Calvete & Galé (1999), The bilevel linear/linear fractional programming problem, "
        "Eur. J. Oper. Res. 114; read in BOLIB",
        outer_loss=lambda v, u: -8 * u[0] - 4 * u[1] + 4 * v[0] - 40 * v[1] - 4 * v[2],
        inner_loss=lambda v, u: (
            (1 + u[0] + u[1] + 2 * v[0] - v[1] + v[2]) / (6 + 2 * u[0] + v[0] + v[1] - 3 * v[2])
        ),
        start=point((0.0, 0.5), (0.0, 0.5, 0.0)),
        solution=point((0.0, 0.9), (0.0, 0.6, 0.4)),
        value=-29.2,
        published_value=-29.2,
        convex_inner=False,
        outer_bounds=at_least(0, 2),
        inner_bounds=fixed(at_least(0, 3)),
        inner_inequalities=lambda v, u: torch.stack(
            [
                -v[0] + v[1] + v[2] - 1,
                2 * u[0] - v[0] + 2 * v[1] - 0.5 * v[2] - 1,
                2 * u[1] + 2 * v[0] - v[1] - 0.5 * v[2] - 1,
            ]
        ),
        remarks="G is quasiconvex in v: a ratio of linear functions with a positive denominator.",
    ),
)
