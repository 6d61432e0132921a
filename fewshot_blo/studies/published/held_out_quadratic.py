"""Held out: convex quadratic inner problems with boxes or linear inequalities."""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot_blo.studies.published.problem import (
    PublishedProblem,
    at_least,
    between,
    fixed,
    point,
    vector,
)

_OUTER = torch.tensor(
    [
        [197.2, 32.4, -129.6, -43.2],
        [32.4, 110.8, -43.2, -14.4],
        [-129.6, -43.2, 302.8, -32.4],
        [-43.2, -14.4, -32.4, 389.2],
    ],
    dtype=torch.float64,
)
_MIXED = torch.tensor(
    [[13.24, 1.08, -4.32, -1.44], [1.08, 10.36, -1.44, -0.48]], dtype=torch.float64
)


def _calamai_and_vicente(v: Tensor, u: Tensor) -> Tensor:
    """Those of CalamaiVicente1994b, for ``_MIXED @ u`` and 10 v."""
    mixed = _MIXED @ u
    return torch.cat([mixed - 10 * v - 1, mixed + 10 * v - vector(1.5, 3), 1 - mixed - 10 * v])


HELD_OUT_QUADRATIC = (
    PublishedProblem(
        name="HenrionSurowiec2011",
        source="Henrion & Surowiec (2011), On calmness conditions in convex bilevel programming, "
        "Applicable Analysis 90, with c = 0; read in BOLIB",
        outer_loss=lambda v, u: u[0] ** 2,
        inner_loss=lambda v, u: 0.5 * v[0] ** 2 - u[0] * v[0],
        start=point((1.0,), (1.0,)),
        solution=point((0.0,), (0.0,)),
        value=0.0,
        published_value=0.0,
        remarks="F does not depend on v.",
    ),
    PublishedProblem(
        name="DeSilva1978",
        source="De Silva (1978), dissertation, George Washington University; read in BOLIB",
        outer_loss=lambda v, u: (u - 1).square().sum() + v.square().sum() - 2,
        inner_loss=lambda v, u: (u - v).square().sum(),
        start=point((0.0, 0.0), (1.0, 1.0)),
        solution=point((0.5, 0.5), (0.5, 0.5)),
        value=-1.0,
        published_value=-1.0,
        inner_bounds=fixed(between(0.5, 1.5, 2)),
    ),
    PublishedProblem(
        name="CalamaiVicente1994c",
        source="Calamai & Vicente (1994), Generating quadratic bilevel programming test problems, "
        "ACM TOMS 20; read in BOLIB",
        outer_loss=lambda v, u: (
            0.5 * u @ _OUTER @ u
            + 50 * v.square().sum()
            - (vector(8.56, 9.52, 9.92, 16.64) * u).sum()
            + 2
        ),
        inner_loss=lambda v, u: 50 * v.square().sum() - 10 * (v * (_MIXED @ u)).sum(),
        start=point((1.0, 1.0, 1.0, 1.0), (1.0, 1.0)),
        solution=point((0.13085, 0.05195, 0.1022, 0.0674), (0.025, 0.05)),
        value=0.3125,
        published_value=0.3125,
        inner_inequalities=_calamai_and_vicente,
        remarks="A linear transformation of CalamaiVicente1994b.",
    ),
    PublishedProblem(
        name="FloudasEtal2013",
        source="Floudas et al. (2013), Handbook of Test Problems in Local and Global Optimization; "
        "read in BOLIB",
        outer_loss=lambda v, u: 2 * u.sum() - 3 * v.sum() - 60,
        inner_loss=lambda v, u: (v - u + 20).square().sum(),
        start=point((10.0, 10.0), (20.0, 20.0)),
        solution=point((0.0, 0.0), (-10.0, -10.0)),
        value=0.0,
        published_value=0.0,
        outer_bounds=between(0, 50, 2),
        inner_bounds=fixed(between(-10, 20, 2)),
        inner_inequalities=lambda v, u: torch.cat(
            [2 * v - u + 10, (u.sum() + v[0] - 2 * v[1] - 40).unsqueeze(0)]
        ),
        solution_unique=False,
        remarks="AiyoshiShimizu1984Ex2 with the constraint of u and v in the inner problem. "
        "u = (0, 30), v = (-10, 10) is a solution too.",
    ),
    PublishedProblem(
        name="SinhaMaloDeb2014TP8",
        source="Sinha, Malo & Deb (2014), problem TP8; read in BOLIB",
        outer_loss=lambda v, u: (3 * v.sum() - 2 * u.sum() + 60) ** 2,
        inner_loss=lambda v, u: (v - u + 20).square().sum(),
        start=point((1.0, 1.0), (1.0, 1.0)),
        solution=point((0.0, 0.0), (-10.0, -10.0)),
        value=0.0,
        published_value=0.0,
        outer_bounds=between(0, 50, 2),
        inner_bounds=fixed(between(-10, 20, 2)),
        outer_inequalities=lambda v, u: (u.sum() + v[0] - 2 * v[1] - 40).unsqueeze(0),
        inner_inequalities=lambda v, u: 2 * v - u + 10,
        solution_unique=False,
        remarks="AiyoshiShimizu1984Ex2 with the square of F.",
    ),
    PublishedProblem(
        name="MuuQuy2003Ex2",
        source="Muu & Quy (2003), example 2; read in BOLIB",
        outer_loss=lambda v, u: (
            -7 * u[0] + 4 * u[1] + v[0] ** 2 + v[2] ** 2 - v[0] * v[2] - 4 * v[1]
        ),
        inner_loss=lambda v, u: (
            v[0] ** 2
            + 0.5 * v[1] ** 2
            + 0.5 * v[2] ** 2
            + v[0] * v[1]
            + (1 - 3 * u[0]) * v[0]
            + (1 + u[1]) * v[1]
        ),
        start=point((0.0, 1.0), (1.0, 1.0, 1.0)),
        solution=point((11 / 18, 7 / 18), (0.0, 0.0, 11 / 6)),
        value=23 / 36,
        published_value=0.6426,
        outer_bounds=at_least(0, 2),
        inner_bounds=fixed(at_least(0, 3)),
        outer_inequalities=lambda v, u: u.sum().unsqueeze(0) - 1,
        inner_inequalities=lambda v, u: (
            2 * v[:1] + v[1:2] - v[2:] + (u[0] - 2 * u[1]).unsqueeze(0) + 2
        ),
        remarks="v = (0, 0, u[0] - 2 u[1] + 2) for all u allowed, so that the problem is a convex "
        "quadratic one in u, whose minimum is 23/36 = 0.6389, below the published value.",
    ),
)
