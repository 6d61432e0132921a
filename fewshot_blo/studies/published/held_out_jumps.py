"""Held out: inner problems that are linear in v, most with jumps of v(u) or many solutions."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from fewshot_blo.studies.published.problem import (
    Bounds,
    PublishedProblem,
    at_least,
    between,
    fixed,
    point,
    vector,
)


def _bilinear(v: Tensor, u: Tensor) -> Tensor:
    """The inner loss that several of Dempe's examples share."""
    return (u * v).sum()


HELD_OUT_JUMPS = (
    PublishedProblem(
        name="CalamaiVicente1994a",
        source="Calamai & Vicente (1994), Generating quadratic bilevel programming test problems, "
        "ACM TOMS 20, with rho = 1; read in BOLIB",
        outer_loss=lambda v, u: 0.5 * (u[0] - 1) ** 2 + 0.5 * v[0] ** 2,
        inner_loss=lambda v, u: 0.5 * v[0] - u[0] * v[0],
        start=point((1.0,), (1.0,)),
        solution=point((1.0,), (0.0,)),
        value=0.0,
        published_value=0.0,
        inner_inequalities=lambda v, u: torch.cat([u - v - 1, 1 - u - v, u + v - 1]),
        remarks="The inner constraints leave v = 1 - u alone, for u <= 1. The start is at the "
        "solution's u.",
    ),
    PublishedProblem(
        name="DempeEtal2012",
        source="Dempe, Mordukhovich & Zemkoho (2012), Sensitivity analysis for two-level value "
        "functions with applications to bilevel programming, SIAM J. Optim. 22; read in BOLIB",
        outer_loss=lambda v, u: u[0],
        inner_loss=_bilinear,
        start=point((1.0,), (1.0,)),
        solution=point((-1.0,), (1.0,)),
        value=-1.0,
        published_value=-1.0,
        outer_bounds=between(-1, 1),
        inner_bounds=fixed(between(0, 1)),
        inner_unique=False,
        remarks="At u = 0 every v solves the inner problem.",
    ),
    PublishedProblem(
        name="DempeFranke2011Ex41",
        source="Dempe & Franke (2011), example 4.1; read in BOLIB",
        outer_loss=lambda v, u: u[0] + v.square().sum(),
        inner_loss=_bilinear,
        start=point((1.0, -1.0), (1.0, 1.0)),
        solution=point((0.0, -1.0), (1.0, 2.0)),
        value=5.0,
        published_value=5.0,
        outer_bounds=Bounds(vector(-1, -1), vector(1, -1)),
        inner_bounds=fixed(Bounds(vector(-inf, 0), vector(2, 2))),
        inner_inequalities=lambda v, u: v[1:] - 2 * v[:1],
        inner_unique=False,
        remarks="v jumps at the solution's u, where v = (w, 2) with w in [1, 2] solves the inner "
        "problem. The bounds fix u[1].",
    ),
    PublishedProblem(
        name="DempeFranke2014Ex38",
        source="Dempe & Franke (2014), Solution algorithm for an optimistic linear Stackelberg "
        "problem, Computers & OR 41, example 3.8; read in BOLIB",
        outer_loss=lambda v, u: 2 * u[0] + u[1] + 2 * v[0] - v[1],
        inner_loss=_bilinear,
        start=point((1.0, -0.75), (1.0, 1.0)),
        solution=point((-1.0, -1.0), (2.0, 2.0)),
        value=-1.0,
        published_value=-1.0,
        outer_bounds=Bounds(vector(-1, -1), vector(1, -0.75)),
        inner_bounds=fixed(Bounds(vector(-inf, 0), vector(2, 2))),
        inner_inequalities=lambda v, u: v[1:] - 2 * v[:1],
        inner_unique=False,
        solution_unique=False,
        remarks="u = (0, -1), v = (1, 2) is the other solution; v jumps there.",
    ),
    PublishedProblem(
        name="DempeLohse2011Ex31a",
        source="Dempe & Lohse (2011), example 3.1 a; read in BOLIB",
        outer_loss=lambda v, u: (u - 0.5).square().sum() - 3 * v.sum(),
        inner_loss=_bilinear,
        start=point((1.0, 1.0), (1.0, 1.0)),
        solution=point((0.0, 0.5), (2.0, 0.0)),
        value=-5.75,
        published_value=-5.5,
        inner_bounds=fixed(at_least(0, 2)),
        inner_inequalities=lambda v, u: torch.stack([v.sum() - 2, v[1] - v[0]]),
        inner_unique=False,
        remarks="The published value is that of u = (0, 0), v = (1, 1); u = (0, 1/2), v = (2, 0) "
        "is feasible and better.",
    ),
    PublishedProblem(
        name="DempeLohse2011Ex31b",
        source="Dempe & Lohse (2011), example 3.1 b; read in BOLIB",
        outer_loss=lambda v, u: (
            (u - vector(0.5, 0.5, 0)).square().sum() - (vector(3, 3, 6) * v).sum()
        ),
        inner_loss=_bilinear,
        start=point((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
        solution=point((0.5, 0.5, 0.0), (0.0, 0.0, 2.0)),
        value=-12.0,
        published_value=-12.0,
        inner_bounds=fixed(at_least(0, 3)),
        inner_inequalities=lambda v, u: torch.stack([v.sum() - 2, v[1] - v[0]]),
        inner_unique=False,
        remarks="v jumps at the solution's u, where v = (0, 0, w) with w in [0, 2] solves the "
        "inner problem.",
    ),
    PublishedProblem(
        name="IshizukaAiyoshi1992a",
        source="Ishizuka & Aiyoshi (1992), Double penalty method for bilevel optimization "
        "problems, Ann. Oper. Res. 34, with M = 3/2; read in BOLIB",
        outer_loss=lambda v, u: u[0] * v[1] ** 2,
        inner_loss=lambda v, u: v[0],
        start=point((1.0,), (1.0, 1.0)),
        solution=point((0.5,), (-0.5, 0.0)),
        value=0.0,
        published_value=0.0,
        outer_bounds=at_least(0),
        inner_inequalities=lambda v, u: torch.stack(
            [-u[0] - v[0], v[0] - u[0], -v.sum() - 1.5, v.sum() - 1.5]
        ),
        inner_unique=False,
        solution_unique=False,
        remarks="v[0] = -u, and v[1] is free between u - 3/2 and u + 3/2. Every u in [0, 3/2] is a "
        "solution, with v[1] = 0.",
    ),
    PublishedProblem(
        name="LucchettiEtal1987",
        source="Lucchetti, Mignanego & Pieri (1987), Existence theorems of equilibrium points in "
        "Stackelberg games with constraints, Optimization 18; read in BOLIB",
        outer_loss=lambda v, u: 0.5 * (1 - u[0]) + u[0] * v[0],
        inner_loss=lambda v, u: (u[0] - 1) * v[0],
        start=point((1.0,), (1.0,)),
        solution=point((1.0,), (0.0,)),
        value=0.0,
        published_value=0.0,
        outer_bounds=between(0, 1),
        inner_bounds=fixed(between(0, 1)),
        inner_unique=False,
        remarks="At u = 1, the start, every v solves the inner problem; below it is v = 1, with "
        "F >= 1/2.",
    ),
    PublishedProblem(
        name="TollSettingP1",
        source="Toll setting; read in BOLIB, version 2",
        outer_loss=lambda v, u: -u[0] * v[2] - u[1] * v[3] - u[2] * v[7],
        inner_loss=lambda v, u: (
            (vector(2, 6, 5, 0, 4, 2, 6, 0) * v).sum() + u[0] * v[2] + u[1] * v[3] + u[2] * v[7]
        ),
        start=point((0.0, 5.0, 5.0), (0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0)),
        solution=point((7.0, 5.0, 7.0), (0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)),
        value=-7.0,
        published_value=-7.0,
        outer_bounds=at_least(0, 3),
        inner_bounds=fixed(at_least(0, 8)),
        inner_equalities=lambda v, u: torch.stack(
            [
                1 - v[0] - v[1] - v[2],
                v[0] - v[3] - v[4],
                v[1] + v[3] - v[5] - v[6],
                v[4] + v[5] - v[7],
                1 - v[2] - v[6] - v[7],
            ]
        ),
        inner_unique=False,
        solution_unique=False,
        remarks="v is a path; the equalities are linearly dependent. At the solution the path "
        "without tolls costs as much. Every u with u[0] = 7, u[1] >= 4 and u[2] >= 6 is one.",
    ),
    PublishedProblem(
        name="WanWangLv2011",
        source="Wan, Wang & Lv (2011), A dual-relax penalty function approach for solving "
        "nonlinear bilevel programming with linear lower level problem, Acta Math. Sci. 31; read "
        "in BOLIB, version 2",
        outer_loss=lambda v, u: (
            (u[0] - u[1] + 2 * v[1] + 1) * (v[1] - 2 * v[0] - u[0] + 5 * v[2] + 8)
        ),
        inner_loss=lambda v, u: 2 * v[0] - v[1] + v[2],
        start=point((0.0, 0.5), (0.0, 0.0, 0.0)),
        solution=point((0.5, 0.5), (0.0, 0.0, 0.0)),
        value=7.5,
        published_value=10.62,
        outer_bounds=at_least(0, 2),
        inner_bounds=fixed(at_least(0, 3)),
        inner_inequalities=lambda v, u: torch.stack(
            [
                -v[0] + v[1] + v[2] - 1,
                2 * u[0] - v[0] + 2 * v[1] - 0.5 * v[2] - 1,
                2 * u[1] + 2 * v[0] - v[1] - 0.5 * v[2] - 1,
            ]
        ),
        remarks="The published value is that of u = (0, 3/4), v = (0, 1/2, 0); u = (1/2, 1/2), "
        "v = 0 is feasible and better.",
    ),
    PublishedProblem(
        name="Zlobec2001a",
        source="Zlobec (2001), Stable Parametric Programming; read in BOLIB",
        outer_loss=lambda v, u: -v[0] / u[0],
        inner_loss=lambda v, u: -v.sum(),
        start=point((1.0,), (1.0, 1.0)),
        solution=point((1.0,), (1.0, 0.0)),
        value=-1.0,
        published_value=-1.0,
        inner_bounds=fixed(at_least(0, 2)),
        inner_inequalities=lambda v, u: v[:1] + u * v[1:] - 1,
        inner_unique=False,
        remarks="v jumps at the solution's u, which is the start's. The inner problem is unbounded "
        "for u <= 0.",
    ),
)
