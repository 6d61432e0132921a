"""Convex quadratic inner problems with linear inequalities of u and v."""

from __future__ import annotations

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

QUADRATIC = (
    PublishedProblem(
        name="Bard1988Ex1",
        source="Bard (1988), Convex two-level optimization, Math. Programming 40, example 1; "
        "read in BOLIB and BASBLib b_1988_01",
        outer_loss=lambda v, u: (u[0] - 5) ** 2 + (2 * v[0] + 1) ** 2,
        inner_loss=lambda v, u: (v[0] - 1) ** 2 - 1.5 * u[0] * v[0],
        start=point((4.0,), (0.0,)),
        solution=point((1.0,), (0.0,)),
        value=17.0,
        published_value=17.0,
        outer_bounds=at_least(0),
        inner_bounds=fixed(at_least(0)),
        inner_inequalities=lambda v, u: torch.cat([-3 * u + v + 3, u - 0.5 * v - 4, u + v - 7]),
        remarks="u = 5, v = 2 is a local solution with F = 25.",
    ),
    PublishedProblem(
        name="Bard1988Ex2",
        source="Aiyoshi & Shimizu (1981), IEEE Trans. SMC 11, and Bard (1988), Convex two-level "
        "optimization, Math. Programming 40, example 2; read in BOLIB and BASBLib as_1981_01",
        outer_loss=lambda v, u: (
            -(200 - v[0] - v[2]) * (v[0] + v[2]) - (160 - v[1] - v[3]) * (v[1] + v[3])
        ),
        inner_loss=lambda v, u: (v - vector(4, 13, 35, 2)).square().sum(),
        start=point((5.0, 5.0, 15.0, 15.0), (0.0, 0.0, 0.0, 0.0)),
        solution=point((7.0, 3.0, 12.0, 18.0), (0.0, 10.0, 30.0, 0.0)),
        value=-6600.0,
        published_value=-6600.0,
        outer_bounds=Bounds(torch.zeros(4, dtype=torch.float64), vector(10, 5, 15, 20)),
        inner_bounds=fixed(Bounds(torch.zeros(4, dtype=torch.float64), vector(20, 20, 40, 40))),
        outer_inequalities=lambda v, u: u.sum().unsqueeze(0) - 40,
        inner_inequalities=lambda v, u: (
            torch.stack(
                [
                    0.4 * v[0] + 0.7 * v[1],
                    0.6 * v[0] + 0.3 * v[1],
                    0.4 * v[2] + 0.7 * v[3],
                    0.6 * v[2] + 0.3 * v[3],
                ]
            )
            - u
        ),
        solution_unique=False,
    ),
    PublishedProblem(
        name="ClarkWesterberg1990a",
        source="Clark & Westerberg (1990), Bilevel programming for steady-state chemical process "
        "design I, Comput. Chem. Eng. 14, section 3.2; read in BOLIB and BASBLib cw_1990_02",
        outer_loss=lambda v, u: (u[0] - 3) ** 2 + (v[0] - 2) ** 2,
        inner_loss=lambda v, u: (v[0] - 5) ** 2,
        start=point((4.0,), (4.0,)),
        solution=point((1.0,), (3.0,)),
        value=5.0,
        published_value=5.0,
        outer_bounds=between(0, 8),
        inner_inequalities=lambda v, u: torch.cat([-2 * u + v - 1, u - 2 * v + 2, u + 2 * v - 14]),
        remarks="The inner problem is feasible for u in [0, 6].  u = 5, v = 4.5 is a local "
        "solution with F = 10.25.",
    ),
    PublishedProblem(
        name="MuuQuy2003Ex1",
        source="Muu & Quy (2003), example 1; read in BOLIB",
        outer_loss=lambda v, u: u[0] ** 2 - 4 * u[0] + v.square().sum(),
        inner_loss=lambda v, u: (
            v[0] ** 2 + 0.5 * v[1] ** 2 + v[0] * v[1] + (1 - 3 * u[0]) * v[0] + (1 + u[0]) * v[1]
        ),
        start=point((2.0,), (0.0, 0.0)),
        solution=point((11 / 13,), (10 / 13, 0.0)),
        value=-27 / 13,
        published_value=-2.0769,
        outer_bounds=between(0, 2),
        inner_bounds=fixed(at_least(0, 2)),
        inner_inequalities=lambda v, u: 2 * v[:1] + v[1:] - 2 * u - 1,
    ),
    PublishedProblem(
        name="CalamaiVicente1994b",
        source="Calamai & Vicente (1994), Generating quadratic bilevel programming test problems, "
        "ACM TOMS 20; read in BOLIB",
        outer_loss=lambda v, u: 0.5 * (u - 1).square().sum() + 0.5 * v.square().sum(),
        inner_loss=lambda v, u: 0.5 * v.square().sum() - u[0] * v[0] - u[1] * v[1],
        start=point((1.0, 1.0, 1.0, 1.0), (0.5, 1.0)),
        solution=point((1.25, 0.5, 1.0, 1.0), (0.25, 0.5)),
        value=0.3125,
        published_value=0.3125,
        inner_inequalities=lambda v, u: torch.cat(
            [
                u[:2] - v - 1,
                u[:2] + v - vector(1.5, 3),
                1 - u[:2] - v,
            ]
        ),
    ),
    PublishedProblem(
        name="Outrata1990Ex1a",
        source="Outrata (1990), On the numerical solution of a class of Stackelberg problems, "
        "example 1 a; read in BOLIB",
        outer_loss=lambda v, u: (
            0.1 * u.square().sum() + 0.5 * (v - vector(3, 4)).square().sum() - 12.5
        ),
        inner_loss=lambda v, u: 0.5 * (v[0] ** 2 - 4 * v[0] * v[1] + 5 * v[1] ** 2) - (u * v).sum(),
        start=point((0.0, 0.0), (1.0, 1.0)),
        solution=point((1.03156645894238, 3.09779717400113), (2.59704792387605, 1.79293670833648)),
        value=-8.91720295642297,
        published_value=-8.92,
        inner_bounds=fixed(at_least(0, 2)),
        inner_inequalities=lambda v, u: v - 0.333 * v.flip(0) - 2,
    ),
    PublishedProblem(
        name="Outrata1990Ex2e",
        source="Outrata (1990), On the numerical solution of a class of Stackelberg problems, "
        "example 2 e; read in BOLIB",
        outer_loss=lambda v, u: 0.5 * (v - vector(3, 4)).square().sum(),
        inner_loss=lambda v, u: (
            0.5 * ((1 + u[0]) * v[0] ** 2 + v[1] ** 2) - (3 + 1.333 * u[0]) * v[0] - u[0] * v[1]
        ),
        start=point((1.0,), (0.0, 0.0)),
        solution=point((3.9985352158278,), (1.66500894830691, 3.88722350416664)),
        value=0.897459823056536,
        published_value=0.90,
        outer_bounds=at_least(0),
        inner_bounds=fixed(at_least(0, 2)),
        inner_inequalities=lambda v, u: torch.stack(
            [
                (-0.333 + 0.1 * u[0]) * v[0] + v[1] - u[0],
                v[0] - (0.333 + 0.1 * u[0]) * v[1] - 2,
            ]
        ),
        remarks="The constraints are linear in v and bilinear in v and u.",
    ),
    PublishedProblem(
        name="SinhaMaloDeb2014TP6",
        source="Sinha, Malo & Deb (2014), problem TP6, after Bard (1998), Practical Bilevel "
        "Optimization; read in BOLIB and, with 2 v[0]² in F, in BASBLib b_1998_07",
        outer_loss=lambda v, u: (u[0] - 1) ** 2 + 2 * v[0] - 2 * u[0],
        inner_loss=lambda v, u: (2 * v[0] - 4) ** 2 + (2 * v[1] - 1) ** 2 + u[0] * v[0],
        start=point((1.0,), (1.0, 0.0)),
        solution=point((17 / 9,), (8 / 9, 0.0)),
        value=-98 / 81,
        published_value=-1.209,
        outer_bounds=at_least(0),
        inner_bounds=fixed(at_least(0, 2)),
        inner_inequalities=lambda v, u: torch.cat(
            [
                4 * u + 5 * v[:1] + 4 * v[1:] - 12,
                4 * u - 4 * v[:1] + 5 * v[1:] - 4,
                -4 * u - 5 * v[:1] + 4 * v[1:] + 4,
                -4 * u + 4 * v[:1] + 5 * v[1:] - 4,
            ]
        ),
    ),
)
