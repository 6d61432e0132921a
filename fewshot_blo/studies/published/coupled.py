"""Convex inner problems with outer constraints, most of them of u and v together."""

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


def _below(bound: Tensor, least: float, greatest: float) -> Bounds:
    """From ``least`` to the smaller one of ``greatest`` and a bound that depends on u."""
    return Bounds(torch.full_like(bound, least), bound.clamp(max=greatest))


COUPLED = (
    PublishedProblem(
        name="ShimizuAiyoshi1981Ex2",
        source="Shimizu & Aiyoshi (1981), A new computational method for Stackelberg and min-max "
        "problems by use of a penalty method, IEEE TAC 26, example 2; read in BOLIB and BASBLib "
        "sa_1981_02",
        outer_loss=lambda v, u: (u - vector(30, 20)).square().sum() - 20 * v[0] + 20 * v[1],
        inner_loss=lambda v, u: (u - v).square().sum(),
        start=point((15.0, 10.0), (1.0, 1.0)),
        solution=point((20.0, 5.0), (10.0, 5.0)),
        value=225.0,
        published_value=225.0,
        outer_bounds=Bounds(vector(-inf, -inf), vector(inf, 15)),
        inner_bounds=fixed(between(0, 10, 2)),
        outer_inequalities=lambda v, u: torch.stack([30 - u[0] - 2 * u[1], u.sum() - 25]),
        remarks="The outer constraints are of u alone.",
    ),
    PublishedProblem(
        name="GumusFloudas2001Ex4",
        source="Sahin & Ciric (1998), Comput. Chem. Eng. 23, example 3, and Gumus & Floudas "
        "(2001), J. Global Optim. 20, example 4; read in BOLIB and BASBLib sc_1998_01",
        outer_loss=lambda v, u: (u[0] - 3) ** 2 + (v[0] - 2) ** 2,
        inner_loss=lambda v, u: (v[0] - 5) ** 2,
        start=point((1.0,), (1.0,)),
        solution=point((3.0,), (5.0,)),
        value=9.0,
        published_value=9.0,
        outer_bounds=between(0, 8),
        inner_bounds=fixed(between(0, 10)),
        outer_inequalities=lambda v, u: torch.cat([-2 * u + v - 1, u - 2 * v + 2, u + 2 * v - 14]),
    ),
    PublishedProblem(
        name="GumusFloudas2001Ex1",
        source="Shimizu, Ishizuka & Bard (1997), example 15.3.1, and Gumus & Floudas (2001), "
        "J. Global Optim. 20, example 1; read in BOLIB and BASBLib sib_1997_01",
        outer_loss=lambda v, u: 16 * u[0] ** 2 + 9 * v[0] ** 2,
        inner_loss=lambda v, u: (u[0] + v[0] - 20) ** 4,
        start=point((8.0,), (10.0,)),
        solution=point((11.25,), (5.0,)),
        value=2250.0,
        published_value=2250.0,
        outer_bounds=between(0, 12.5),
        inner_bounds=lambda u: _below(50 - 4 * u, 0, 50),
        inner_bounds_move=True,
        outer_inequalities=lambda v, u: v - 4 * u,
        remarks="G has a zero second derivative at its minimum where that is inside the bounds.  "
        "u = 7.2, v = 12.8 is a local solution with F = 2304.",
    ),
    PublishedProblem(
        name="ShimizuAiyoshi1981Ex1",
        source="Shimizu & Aiyoshi (1981), A new computational method for Stackelberg and min-max "
        "problems by use of a penalty method, IEEE TAC 26, example 1; read in BOLIB",
        outer_loss=lambda v, u: u[0] ** 2 + (v[0] - 10) ** 2,
        inner_loss=lambda v, u: (u[0] + 2 * v[0] - 30) ** 2,
        start=point((12.0,), (1.0,)),
        solution=point((10.0,), (10.0,)),
        value=100.0,
        published_value=100.0,
        outer_bounds=between(0, 15),
        inner_bounds=lambda u: _below(20 - u, 0, 20),
        inner_bounds_move=True,
        outer_inequalities=lambda v, u: v - u,
    ),
    PublishedProblem(
        name="AiyoshiShimizu1984Ex2",
        source="Aiyoshi & Shimizu (1984), A solution method for the static constrained Stackelberg "
        "problem via penalty method, IEEE TAC 29, example 2; read in BOLIB and BASBLib as_1984_01",
        outer_loss=lambda v, u: 2 * u.sum() - 3 * v.sum() - 60,
        inner_loss=lambda v, u: (v - u + 20).square().sum(),
        start=point((10.0, 10.0), (0.0, 0.0)),
        solution=point((0.0, 30.0), (-10.0, 10.0)),
        value=0.0,
        published_value=0.0,
        outer_bounds=between(0, 50, 2),
        inner_bounds=lambda u: _below((u - 10) / 2, -10, 20),
        inner_bounds_move=True,
        outer_inequalities=lambda v, u: (u.sum() + v[0] - 2 * v[1] - 40).unsqueeze(0),
        solution_unique=False,
        remarks="u = (0, 0), v = (-10, -10) has the same F. The paper, and BOLIB, name the local "
        "solution u = (25, 30), v = (5, 10) with F = 5.",
    ),
    PublishedProblem(
        name="Colson2002BIPA3",
        source="Colson (2002), BIPA, Cahiers du GERAD G-2002-37, problem BIPA3; read in BOLIB and "
        "BASBLib c_2002_03",
        outer_loss=lambda v, u: (u[0] - 5) ** 4 + (2 * v[0] + 1) ** 4,
        inner_loss=lambda v, u: (v[0] - u[0]).exp() + (u[0] + v[0]) ** 2 + 2 * u[0] + 6 * v[0],
        start=point((2.0,), (1.0,)),
        solution=point((4.0,), (0.0,)),
        value=2.0,
        published_value=2.0,
        outer_bounds=at_least(0),
        inner_bounds=fixed(at_least(0)),
        outer_inequalities=lambda v, u: u + v - 4,
        inner_inequalities=lambda v, u: v - u - 2,
    ),
)
