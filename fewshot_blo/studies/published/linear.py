"""Linear inner problems with linear inequalities of u and v."""

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

LINEAR = (
    PublishedProblem(
        name="LamparielloSagratella2017Ex33",
        source="Lampariello & Sagratella (2017), A bridge between bilevel programs and Nash games, "
        "arXiv 1510.06695, example 3.3; read in BOLIB",
        outer_loss=lambda v, u: u[0] ** 2 + v.sum() ** 2,
        inner_loss=lambda v, u: v[0],
        start=point((1.0,), (1.0, 1.0)),
        solution=point((0.5,), (0.0, 0.5)),
        value=0.5,
        published_value=0.5,
        outer_bounds=at_least(0.5),
        inner_bounds=fixed(at_least(0, 2)),
        inner_inequalities=lambda v, u: 1 - u - v.sum(),
        inner_unique=False,
        remarks="Every v = (0, w) with w >= 1 - u solves the inner problem.",
    ),
    PublishedProblem(
        name="LamparielloSagratella2017Ex35",
        source="Lampariello & Sagratella (2017), A bridge between bilevel programs and Nash games, "
        "arXiv 1510.06695, example 3.5; read in BOLIB",
        outer_loss=lambda v, u: u[0] ** 2 + v[0] ** 2,
        inner_loss=lambda v, u: -v[0],
        start=point((1.0,), (1.0,)),
        solution=point((0.8,), (0.4,)),
        value=0.8,
        published_value=0.8,
        outer_bounds=between(-1, 1),
        inner_bounds=fixed(between(0, 1)),
        inner_inequalities=lambda v, u: 2 * u + v - 2,
        remarks="u = 0, v = 1 is a local solution with F = 1.",
    ),
    PublishedProblem(
        name="Bard1991Ex1",
        source="Bard (1991), Some properties of the bilevel programming problem, JOTA 68, "
        "example 1; read in BOLIB",
        outer_loss=lambda v, u: u[0] + v[1],
        inner_loss=lambda v, u: 2 * v[0] + u[0] * v[1],
        start=point((3.0,), (1.0, 1.0)),
        solution=point((2.0,), (6.0, 0.0)),
        value=2.0,
        published_value=2.0,
        outer_bounds=between(2, 4),
        inner_bounds=fixed(at_least(0, 2)),
        inner_inequalities=lambda v, u: u - v.sum() + 4,
        inner_unique=False,
        remarks="At u = 2 every v >= 0 with v[0] + v[1] = 6 solves the inner problem.",
    ),
    PublishedProblem(
        name="ClarkWesterberg1990b",
        source="Clark & Westerberg (1990), Bilevel programming for steady-state chemical process "
        "design I, Comput. Chem. Eng. 14, section 3.1; read in BOLIB and BASBLib cw_1990_01",
        outer_loss=lambda v, u: -u[0] - 3 * v[0] + 2 * v[1],
        inner_loss=lambda v, u: -v[0],
        start=point((4.0,), (1.0, 1.0)),
        solution=point((5.0,), (4.0, 2.0)),
        value=-13.0,
        published_value=-13.0,
        outer_bounds=between(0, 8),
        inner_bounds=fixed(Bounds(vector(0, -inf), vector(4, inf))),
        inner_inequalities=lambda v, u: torch.cat(
            [
                -2 * u + v[:1] + 4 * v[1:] - 16,
                8 * u + 3 * v[:1] - 2 * v[1:] - 48,
                -2 * u + v[:1] - 3 * v[1:] + 12,
            ]
        ),
        inner_unique=False,
        remarks="Where v[0] = 4 is possible, v[1] is free within an interval that depends on u.",
    ),
    PublishedProblem(
        name="TuyEtal2007",
        source="Tuy, Migdalas & Hoai-Phuong (2007), A novel approach to bilevel nonlinear "
        "programming, J. Global Optim. 38, example 1; read in BOLIB and BASBLib tmh_2007_01",
        outer_loss=lambda v, u: u[0] ** 2 + v[0] ** 2,
        inner_loss=lambda v, u: -v[0],
        start=point((4.0,), (0.0,)),
        solution=point((1.5,), (4.5,)),
        value=22.5,
        published_value=22.5,
        outer_bounds=at_least(0),
        inner_bounds=fixed(at_least(0)),
        inner_inequalities=lambda v, u: torch.cat([3 * u + v - 15, u + v - 7, u + 3 * v - 15]),
        remarks="BOLIB states v >= 0 as a constraint of the outer problem; it is never active at "
        "a solution of either. u = 4.5, v = 1.5 is a local solution with the same F.",
        solution_unique=False,
    ),
)
