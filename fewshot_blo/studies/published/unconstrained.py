"""Problems without constraints."""

from __future__ import annotations

from fewshot_blo.studies.published.problem import PublishedProblem, point

UNCONSTRAINED = (
    PublishedProblem(
        name="LamparielloSagratella2017Ex32",
        source="Lampariello & Sagratella (2017), A bridge between bilevel programs and Nash games, "
        "arXiv 1510.06695, example 3.2; read in BOLIB",
        outer_loss=lambda v, u: u[0] ** 2 + v[0] ** 2,
        inner_loss=lambda v, u: (u[0] + v[0] - 1) ** 2,
        start=point((1.0,), (1.0,)),
        solution=point((0.5,), (0.5,)),
        value=0.5,
        published_value=0.5,
    ),
    PublishedProblem(
        name="MacalHurter1997",
        source="Macal & Hurter (1997); read in BOLIB and, with bounds of ±100, in BASBLib "
        "b_1998_04",
        outer_loss=lambda v, u: (u[0] - 1) ** 2 + (v[0] - 1) ** 2,
        inner_loss=lambda v, u: 0.5 * v[0] ** 2 + 500 * v[0] - 50 * u[0] * v[0],
        start=point((1.0,), (1.0,)),
        solution=point((25051 / 2501,), (2050 / 2501,)),
        value=(22550 / 2501) ** 2 + (451 / 2501) ** 2,
        published_value=81.327,
        remarks="v moves 50 times as fast as u: with the bound v >= 0 added the solution is "
        "another, Bard1998Ex5.",
    ),
)
