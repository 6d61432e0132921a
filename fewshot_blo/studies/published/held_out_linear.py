"""Held out: linear inner problems with linear inequalities and a linear outer loss."""

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


def _bard_and_falk(v: Tensor, u: Tensor) -> Tensor:
    """The constraints that the versions of Bard & Falk's second example share."""
    return torch.stack([2.5 - 2 * u[0] + v[0] - v[1], u[0] - 3 * u[1] + v[1] - 2])


HELD_OUT_LINEAR = (
    PublishedProblem(
        name="AnandalinghamWhite1990",
        source="Anandalingam & White (1990), A solution method for the linear static Stackelberg "
        "problem using penalty functions, IEEE TAC 35; read in BOLIB, version 2",
        outer_loss=lambda v, u: -u[0] - 3 * v[0],
        inner_loss=lambda v, u: 3 * v[0] - u[0],
        start=point((1.0,), (1.0,)),
        solution=point((16.0,), (11.0,)),
        value=-49.0,
        published_value=-49.0,
        outer_bounds=at_least(0),
        inner_bounds=fixed(at_least(0)),
        inner_inequalities=lambda v, u: torch.cat(
            [
                10 - u - 2 * v,
                u - 2 * v - 6,
                2 * u - v - 21,
                u + 2 * v - 38,
                -u + 2 * v - 18,
            ]
        ),
    ),
    PublishedProblem(
        name="Bard1984a",
        source="Bard (1984), Optimality conditions for the bilevel programming problem, Naval Res. "
        "Logist. Q. 31; read in BOLIB, version 2",
        outer_loss=lambda v, u: u[0] + v[0],
        inner_loss=lambda v, u: -5 * u[0] - v[0],
        start=point((1.0,), (1.0,)),
        solution=point((8 / 9,), (20 / 9,)),
        value=28 / 9,
        published_value=3.11,
        outer_bounds=at_least(0),
        inner_bounds=fixed(at_least(0)),
        inner_inequalities=lambda v, u: torch.cat(
            [2 - u - 0.5 * v, -0.25 * u + v - 2, u + 0.5 * v - 8, u - 2 * v - 4]
        ),
    ),
    PublishedProblem(
        name="BenAyedBlair1990a",
        source="Ben-Ayed & Blair (1990), Computational difficulties of bilevel linear "
        "programming, Oper. Res. 38; read in BOLIB, version 2",
        outer_loss=lambda v, u: -1.5 * u[0] - 6 * v[0] - v[1],
        inner_loss=lambda v, u: -v[0] - 5 * v[1],
        start=point((1.0,), (1.0, 1.0)),
        solution=point((1.0,), (0.0, 1.0)),
        value=-2.5,
        published_value=-2.5,
        outer_bounds=between(0, 1),
        inner_bounds=fixed(at_least(0, 2)),
        inner_inequalities=lambda v, u: torch.stack(
            [u[0] + 3 * v[0] + v[1] - 5, 2 * u[0] + v[0] + 3 * v[1] - 5]
        ),
        remarks="The start is at the solution's u.",
    ),
    PublishedProblem(
        name="ClarkWesterberg1988",
        source="Clark & Westerberg (1988), A note on the optimality conditions for the bilevel "
        "programming problem, Naval Res. Logist. 35; read in BOLIB, version 2",
        outer_loss=lambda v, u: u[0] - 4 * v[0],
        inner_loss=lambda v, u: v[0],
        start=point((20.0,), (0.0,)),
        solution=point((19.0,), (14.0,)),
        value=-37.0,
        published_value=-37.0,
        inner_inequalities=lambda v, u: torch.cat(
            [-2 * u + v, 2 * u + 5 * v - 108, 2 * u - 3 * v + 4]
        ),
        remarks="The inner problem has no feasible v at the start: u is in [1, 19].",
    ),
    PublishedProblem(
        name="BialasKarwan1984a",
        source="Bialas & Karwan (1984), Two-level linear programming, Management Science 30; read "
        "in BOLIB, version 2",
        outer_loss=lambda v, u: -u[0] - v[1],
        inner_loss=lambda v, u: -v[1],
        start=point((1.0,), (1.0, 1.0)),
        solution=point((1.75,), (1.0, 0.25)),
        value=-2.0,
        published_value=-2.0,
        outer_bounds=at_least(0),
        inner_bounds=fixed(Bounds(vector(0, 0), vector(inf, 0.5))),
        inner_inequalities=lambda v, u: torch.stack(
            [
                u[0] + v[0] + v[1] - 3,
                1 - u[0] - v[0] + v[1],
                v[0] + v[1] - u[0] - 1,
                u[0] - v[0] + v[1] - 1,
            ]
        ),
        inner_unique=False,
        solution_unique=False,
        remarks="Every u in [3/2, 2] is a solution, with v = (1, 2 - u). For smaller u, v[1] = 1/2 "
        "leaves v[0] free in an interval.",
    ),
    PublishedProblem(
        name="LiuHart1994",
        source="Liu & Hart (1994), Characterizing an optimal solution to the linear bilevel "
        "programming problem, Eur. J. Oper. Res. 73; read in BOLIB, version 2",
        outer_loss=lambda v, u: -u[0] - 3 * v[0],
        inner_loss=lambda v, u: v[0],
        start=point((1.0,), (1.0,)),
        solution=point((4.0,), (4.0,)),
        value=-16.0,
        published_value=-16.0,
        outer_bounds=at_least(0),
        inner_bounds=fixed(at_least(0)),
        inner_inequalities=lambda v, u: torch.cat([-u + v - 3, u + 2 * v - 12, 4 * u - v - 12]),
    ),
    PublishedProblem(
        name="BardFalk1982Ex2",
        source="Bard & Falk (1982), An explicit solution to the multi-level programming problem, "
        "Computers & OR 9, example 2; read in BOLIB, version 2",
        outer_loss=lambda v, u: -2 * u[0] + u[1] + 0.5 * v[0],
        inner_loss=lambda v, u: u.sum() - 4 * v[0] + v[1],
        start=point((1.0, 1.0), (1.0, 1.0)),
        solution=point((2.0, 0.0), (1.5, 0.0)),
        value=-3.25,
        published_value=-3.25,
        outer_bounds=at_least(0, 2),
        inner_bounds=fixed(at_least(0, 2)),
        inner_inequalities=lambda v, u: torch.cat([_bard_and_falk(v, u), u.sum().unsqueeze(0) - 2]),
        remarks="The inner constraint u[0] + u[1] <= 2 is of u alone.",
    ),
    PublishedProblem(
        name="TuyEtal1993",
        source="Tuy, Migdalas & Värbrand (1993), A global optimization approach for the linear "
        "two-level program, J. Global Optim. 3; read in BOLIB, version 2",
        outer_loss=lambda v, u: -2 * u[0] + u[1] + 0.5 * v[0],
        inner_loss=lambda v, u: -4 * v[0] + v[1],
        start=point((0.0, 0.0), (0.0, 0.0)),
        solution=point((2.0, 0.0), (1.5, 0.0)),
        value=-3.25,
        published_value=-3.25,
        outer_bounds=at_least(0, 2),
        inner_bounds=fixed(at_least(0, 2)),
        outer_inequalities=lambda v, u: u.sum().unsqueeze(0) - 2,
        inner_inequalities=_bard_and_falk,
        remarks="BardFalk1982Ex2 with the constraint of u alone in the outer problem, and from "
        "another start.",
    ),
    PublishedProblem(
        name="HaurieSavardWhite1990",
        source="Haurie, Savard & White (1990), A note on: an efficient point algorithm for a "
        "linear two-stage optimization problem, Oper. Res. 38; read in BOLIB, version 2",
        outer_loss=lambda v, u: u[0] + 5 * v[0],
        inner_loss=lambda v, u: -v[0],
        start=point((1.0,), (1.0,)),
        solution=point((12.0,), (3.0,)),
        value=27.0,
        published_value=27.0,
        inner_inequalities=lambda v, u: torch.cat(
            [
                -3 * u + 2 * v - 6,
                3 * u + 4 * v - 48,
                2 * u - 5 * v - 9,
                8 - u - v,
            ]
        ),
        remarks="The inner problem has no feasible v at the start: u is in [2, 12].",
    ),
    PublishedProblem(
        name="LanWenShihLee2007",
        source="Lan, Wen, Shih & Lee (2007), A hybrid neural network approach to bilevel "
        "programming problems, Appl. Math. Lett. 20; read in BOLIB, version 2",
        outer_loss=lambda v, u: 2 * u[0] - 11 * v[0],
        inner_loss=lambda v, u: u[0] + 3 * v[0],
        start=point((1.0,), (1.0,)),
        solution=point((192 / 11,), (120 / 11,)),
        value=-936 / 11,
        published_value=-85.0909,
        outer_bounds=at_least(0),
        inner_bounds=fixed(at_least(0)),
        inner_inequalities=lambda v, u: torch.cat(
            [
                u - 2 * v - 4,
                2 * u - v - 24,
                3 * u + 4 * v - 96,
                u + 7 * v - 126,
                -4 * u + 5 * v - 65,
                8 - u - 4 * v,
            ]
        ),
    ),
)
