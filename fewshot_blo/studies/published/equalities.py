"""Convex inner problems with equality constraints at either level."""

from __future__ import annotations

from math import inf, sqrt

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

_ASSETS = 10
_SHARES = torch.arange(1, _ASSETS + 1, dtype=torch.float64)
_MEAN = 1.15 + 0.05 / _ASSETS * _SHARES
_VARIANCE = (0.05 / 3 / _ASSETS) ** 2 * 2 * _ASSETS * (_ASSETS + 1) * _SHARES

_FIXED_COSTS, _CONGESTION = vector(50, 0, 10, 0, 50), vector(1, 10, 1, 10, 1)
"""Of the five links of a network with six units of flow: a unit costs ``a + b v / (1 + u)``."""


def _travel_costs(v: Tensor, u: Tensor, share: float) -> Tensor:
    """All flow's costs (share 1), or their potential, whose minimum is the equilibrium (1/2)."""
    return (v * (_FIXED_COSTS + share * _CONGESTION * v / (1 + u))).sum()


EQUALITIES = (
    PublishedProblem(
        name="TollSettingP5",
        source="Toll setting; read in BOLIB, version 2",
        outer_loss=lambda v, u: -u[0] * (v[1] + v[2]),
        inner_loss=lambda v, u: 8 * v[0] + (3 + 2 * u[0]) * v[1] + (4 + 2 * u[0]) * v[2] + 6 * v[3],
        start=point((1.5,), (0.5, 0.5, 0.5, 0.5)),
        solution=point((2.5,), (0.0, 1.0, 0.0, 1.0)),
        value=-2.5,
        published_value=-2.5,
        inner_bounds=fixed(at_least(0, 4)),
        inner_equalities=lambda v, u: torch.stack([v[0] + v[1] - 1, v[2] + v[3] - 1]),
        inner_unique=False,
        remarks="v jumps at u = 1 and u = 5/2; the solution is at the latter jump, where every "
        "division of the first unit of flow solves the inner problem.",
    ),
    PublishedProblem(
        name="NetworkDesignP2",
        source="Network design with five links; read in BOLIB, version 2",
        outer_loss=lambda v, u: _travel_costs(v, u, 1.0) + u.sum(),
        inner_loss=lambda v, u: _travel_costs(v, u, 0.5),
        start=point((0.0,) * 5, (2.0, 4.0, 2.0, 4.0, 2.0)),
        solution=point((0.0, sqrt(360) - 1, 5.0, sqrt(360) - 1, 0.0), (0.0, 6.0, 6.0, 6.0, 0.0)),
        value=69 + 4 * sqrt(360),
        published_value=142.9,
        outer_bounds=at_least(0, 5),
        inner_bounds=fixed(at_least(0, 5)),
        inner_equalities=lambda v, u: torch.stack(
            [v[0] + v[2] + v[4] - 6, v[1] - v[2] - v[4], v[3] - v[0] - v[2]]
        ),
        remarks="BOLIB has u >= -1, where the costs are not defined at u = -1. There u[0] and u[4] "
        "tend to -1, and F to 142.9, which is less by their 2.",
    ),
    PublishedProblem(
        name="RobustPortfolioP1",
        source="Robust portfolio of ten assets; read in BOLIB, version 2",
        outer_loss=lambda v, u: -u[_ASSETS],
        inner_loss=lambda v, u: (u[:_ASSETS] * v).sum() - u[_ASSETS],
        start=point((0.1,) * 10 + (1.0,), (1.0,) * 10),
        solution=point((0.1,) * 10 + (1.15,), (1.15,) * 10),
        value=-1.15,
        published_value=-1.15,
        outer_bounds=Bounds(
            torch.cat([torch.zeros(_ASSETS, dtype=torch.float64), vector(-inf)]),
            torch.full((_ASSETS + 1,), inf, dtype=torch.float64),
        ),
        inner_bounds=fixed(at_least(0, _ASSETS)),
        outer_inequalities=lambda v, u: u[_ASSETS:] - (u[:_ASSETS] * v).sum(),
        outer_equalities=lambda v, u: u[:_ASSETS].sum().unsqueeze(0) - 1,
        inner_inequalities=lambda v, u: ((v - _MEAN) ** 2 / _VARIANCE).sum().unsqueeze(0) - 2.25,
    ),
    PublishedProblem(
        name="CandlerTownsley1982",
        source="Candler & Townsley (1982), A linear two-level programming problem, Computers & OR "
        "9, section 6; read in BASBLib ct_1982_01",
        outer_loss=lambda v, u: -8 * u[0] - 4 * u[1] + 4 * v[0] - 40 * v[1] - 4 * v[2],
        inner_loss=lambda v, u: u[0] + 2 * u[1] + v[0] + v[1] + 2 * v[2],
        start=point((0.5, 0.5), (0.5, 0.5, 0.5, 0.5, 0.5, 0.5)),
        solution=point((0.0, 0.9), (0.0, 0.6, 0.4, 0.0, 0.0, 0.0)),
        value=-29.2,
        published_value=-29.2,
        outer_bounds=at_least(0, 2),
        inner_bounds=fixed(at_least(0, 6)),
        inner_equalities=lambda v, u: torch.stack(
            [
                -v[0] + v[1] + v[2] + v[3] - 1,
                2 * u[0] - v[0] + 2 * v[1] - 0.5 * v[2] + v[4] - 1,
                2 * u[1] + 2 * v[0] - v[1] - 0.5 * v[2] + v[5] - 1,
            ]
        ),
    ),
)
