"""Held out: Outrata's convex quadratic inner problems with linear inequalities."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from fewshot_blo.studies.published.problem import (
    Bounds,
    PublishedProblem,
    at_least,
    fixed,
    point,
    vector,
)

_OUTRATA_1990 = "Outrata (1990), On the numerical solution of a class of Stackelberg problems, "
_VERTEX = 2 / 0.667
"""Both entries of v where the two inner constraints of Outrata's first examples meet."""
_VERTEX_VALUE = 0.5 * ((_VERTEX - 3) ** 2 + (_VERTEX - 4) ** 2)


def _distance(v: Tensor) -> Tensor:
    """Of v to (3, 4), half the square: Outrata's outer loss."""
    return 0.5 * (v - vector(3, 4)).square().sum()


def _outrata(v: Tensor, u: Tensor) -> Tensor:
    """The inner constraints of Outrata's examples 1 and 2 a, b."""
    return v - 0.333 * v.flip(0) - 2


HELD_OUT_OUTRATA = (
    PublishedProblem(
        name="Outrata1990Ex1b",
        source=_OUTRATA_1990 + "example 1 b; read in BOLIB",
        outer_loss=lambda v, u: u.square().sum() + _distance(v) - 12.5,
        inner_loss=lambda v, u: 0.5 * (v[0] ** 2 - 4 * v[0] * v[1] + 5 * v[1] ** 2) - (u * v).sum(),
        start=point((0.0, 0.0), (3.0, 3.0)),
        solution=point(
            (0.278839149639481, 0.474811712934907), (2.34381917406722, 1.03249001221387)
        ),
        value=-7.57845816392202,
        published_value=-7.56,
        inner_bounds=fixed(at_least(0, 2)),
        inner_inequalities=_outrata,
        remarks="The published value is larger than the minimum by 0.018.",
    ),
    PublishedProblem(
        name="Outrata1990Ex1c",
        source=_OUTRATA_1990 + "example 1 c; read in BOLIB",
        outer_loss=lambda v, u: _distance(v) - 12.5,
        inner_loss=lambda v, u: 0.5 * v[0] ** 2 + 3 * v[0] * v[1] + 5 * v[1] ** 2 - (u * v).sum(),
        start=point((0.0, 0.0), (3.0, 3.0)),
        solution=point((4 * _VERTEX, 13 * _VERTEX), (_VERTEX, _VERTEX)),
        value=_VERTEX_VALUE - 12.5,
        published_value=-12.0,
        inner_bounds=fixed(at_least(0, 2)),
        inner_inequalities=_outrata,
        solution_unique=False,
        remarks="v is at a vertex of its constraints; many u lead there.",
    ),
    PublishedProblem(
        name="Outrata1990Ex1e",
        source=_OUTRATA_1990 + "example 1 e; read in BOLIB",
        outer_loss=lambda v, u: 0.1 * u.square().sum() + _distance(v) - 12.5,
        inner_loss=lambda v, u: (
            0.5 * v[0] ** 2
            + 3 * v[0] * v[1]
            + 5 * v[1] ** 2
            - v[0] * (2 * u[1] - u[0])
            - v[1] * (3 * u[0] - 3 * u[1])
        ),
        start=point((6.0, -3.0), (3.0, 3.0)),
        solution=point((-0.4, 0.8), (2.0, 0.0)),
        value=-3.92,
        published_value=-3.15,
        inner_bounds=fixed(at_least(0, 2)),
        inner_inequalities=_outrata,
        remarks="u = (60/19, -60/19), v = (0, 36/19) is a local solution with F = -72/19 = -3.789; "
        "both are better than the published value.",
    ),
    PublishedProblem(
        name="Outrata1990Ex2a",
        source=_OUTRATA_1990 + "example 2 a; read in BOLIB",
        outer_loss=lambda v, u: _distance(v),
        inner_loss=lambda v, u: 0.5 * v.square().sum() - (3 + 1.333 * u[0]) * v[0] - u[0] * v[1],
        start=point((1.0,), (1.0, 1.0)),
        solution=point((10.0,), (_VERTEX, _VERTEX)),
        value=_VERTEX_VALUE,
        published_value=0.5,
        outer_bounds=at_least(0),
        inner_bounds=fixed(at_least(0, 2)),
        inner_inequalities=_outrata,
        solution_unique=False,
        remarks="v is at a vertex of its constraints; large u lead there.",
    ),
    PublishedProblem(
        name="Outrata1990Ex2b",
        source=_OUTRATA_1990 + "example 2 b; read in BOLIB",
        outer_loss=lambda v, u: _distance(v),
        inner_loss=lambda v, u: (
            0.5 * (1 + u[0]) * v[0] ** 2 - (3 + 1.333 * u[0]) * v[0] - u[0] * v[1]
        ),
        start=point((5.0,), (0.0, 0.0)),
        solution=point((0.0005,), (_VERTEX, _VERTEX)),
        value=_VERTEX_VALUE,
        published_value=0.5,
        outer_bounds=at_least(0),
        inner_bounds=fixed(at_least(0, 2)),
        inner_inequalities=_outrata,
        solution_unique=False,
        remarks="G is linear in v[1]. v is at a vertex of its constraints for u <= 0.001126.",
    ),
    PublishedProblem(
        name="Outrata1993Ex31",
        source="Outrata (1993), example 3.1; read in BOLIB",
        outer_loss=lambda v, u: _distance(v),
        inner_loss=lambda v, u: (
            0.5 * (1 + 0.2 * u[0]) * v[0] ** 2
            + 0.5 * (1 + 0.1 * u[0]) * v[1] ** 2
            - (3 + 1.333 * u[0]) * v[0]
            - u[0] * v[1]
        ),
        start=point((0.0,), (0.0, 0.0)),
        solution=point((1.90951796889404,), (2.97858786523604, 2.2321512571744)),
        value=1.56287382851259,
        published_value=1.56,
        outer_bounds=at_least(0),
        inner_bounds=fixed(at_least(0, 2)),
        inner_inequalities=lambda v, u: torch.stack(
            [
                (-0.333 + 0.1 * u[0]) * v[0] + v[1] + 0.1 * u[0] - 2,
                v[0] - (0.333 + 0.1 * u[0]) * v[1] + 0.1 * u[0] - 2,
            ]
        ),
        remarks="The solution is on a kink of F(v(u), u), where the first constraint becomes "
        "active.",
    ),
    PublishedProblem(
        name="OutrataCervinka2009",
        source="Outrata & Červinka (2009), On the implicit programming approach in a class of "
        "mathematical programs with equilibrium constraints, Control and Cybernetics 38; read in "
        "BOLIB, version 2",
        outer_loss=lambda v, u: -2 * u[0] - 0.5 * u[1] - v[1],
        inner_loss=lambda v, u: v[0] - v[1] + (u * v).sum() + 0.5 * v.square().sum(),
        start=point((-1.0, 1.0), (1.0, 1.0)),
        solution=point((0.0, 0.0), (0.0, 0.0)),
        value=0.0,
        published_value=0.0,
        outer_bounds=Bounds(vector(-inf, -inf), vector(0, inf)),
        inner_inequalities=lambda v, u: torch.stack([v[1], v[1] - v[0], v[0] + v[1]]),
        solution_unique=False,
        remarks="u = (0, w), v = (-w / 2, -w / 2) is a solution for every w in [0, 2]. BOLIB "
        "starts from u = (1, 1), which the bounds do not allow.",
    ),
)
