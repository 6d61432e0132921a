"""Looks for u better than the stated solutions of the published problems, with SciPy alone.

    python benchmarks/published_optima.py [--held-out] [--problem NAME ...] [--output TABLE.md]

With one or two outer variables, a grid over the outer bounds (where there are none, around the
stated solution) that is refined about its best points and the stated solution; with more, SLSQP on
F(v(u), u) from many starts. Every u is answered by the inner solution that suits the outer problem
best, where G may be larger by 1e-9. Takes about ten minutes on one core.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import inf

import numpy as np
import torch
from published_oracle import Answer, Array, inner_minimum, optimistic, tensor
from published_table import print_table
from scipy.optimize import Bounds, minimize

from fewshot_blo.studies.published import PublishedProblem

GRID = {1: 101, 2: 25}
FINE = {1: 7, 2: 5}
ROUNDS, KEPT = 10, 3
STARTS = 9


@dataclass(frozen=True)
class Found:
    """The best u, its v, and F."""

    u: Array
    answer: Answer


def inner_starts(problem: PublishedProblem) -> int:
    """Of SLSQP, for one u."""
    return 2 if problem.convex_inner else 8


def region(problem: PublishedProblem) -> tuple[Array, Array]:
    """Where u is looked for: the outer bounds, and where they are infinite near the solution."""
    centre = problem.solution.u.numpy()
    reach = 2 + np.abs(centre)
    lower, upper = np.full_like(centre, -inf), np.full_like(centre, inf)
    if problem.outer_bounds is not None:
        lower, upper = (bound.numpy() for bound in problem.outer_bounds)
    return np.where(np.isfinite(lower), lower, centre - reach), np.where(
        np.isfinite(upper), upper, centre + reach
    )


def lattice(lower: Array, upper: Array, count: int) -> Iterator[Array]:
    """Evenly spaced points, both ends included."""
    axes = [np.linspace(low, high, count) for low, high in zip(lower, upper, strict=True)]
    return (np.array(entries) for entries in product(*axes))


def refined_grid(problem: PublishedProblem) -> Found:
    """A grid, and ever finer ones about its best points."""
    size, count = problem.outer_size, inner_starts(problem)
    lower, upper = region(problem)
    begins = [problem.solution.u.numpy(), *lattice(lower, upper, GRID[size])]
    seen = [Found(u, optimistic(problem, tensor(u), count)) for u in begins]
    best = sorted(seen, key=lambda found: found.answer.value)[:KEPT]
    radius = (upper - lower) / (GRID[size] - 1)
    for _ in range(ROUNDS):
        near = [
            Found(u, optimistic(problem, tensor(u), count))
            for found in best
            for u in lattice(
                np.maximum(found.u - radius, lower),
                np.minimum(found.u + radius, upper),
                FINE[size],
            )
        ]
        best = sorted([*best, *near], key=lambda found: found.answer.value)[:KEPT]
        radius = radius / 2.5
    return best[0]


def many_starts(problem: PublishedProblem) -> Found:
    """SLSQP on u alone, v being the inner solution, with differences for derivatives."""
    lower, upper = region(problem)
    draws = np.random.default_rng(0)
    known = problem.solution.u.numpy()
    begins = [draws.uniform(lower, upper) for _ in range(STARTS)]
    begins += [known + 0.1 * draws.normal(size=len(known)) for _ in range(STARTS // 3)]

    @lru_cache(maxsize=64)
    def answered(entries: tuple[float, ...]) -> torch.Tensor:
        return tensor(inner_minimum(problem, tensor(np.array(entries)), 1).v)

    def v_of(u: Array) -> torch.Tensor:
        return answered(tuple(u))

    constraints = []
    for kind, function, sign in (
        ("ineq", problem.outer_inequalities, -1.0),
        ("eq", problem.outer_equalities, 1.0),
    ):
        if function is not None:
            constraints.append(
                {
                    "type": kind,
                    "fun": lambda u, f=function, s=sign: s * f(v_of(u), tensor(u)).numpy(),
                }
            )
    best = Found(known, Answer(problem.solution.v.numpy(), inf))
    for begin in begins:
        result = minimize(
            lambda u: float(problem.outer_loss(v_of(u), tensor(u))),
            np.clip(begin, lower, upper),
            bounds=Bounds(lower, upper),
            constraints=constraints,
            method="SLSQP",
            options={"ftol": 1e-10, "maxiter": 40, "eps": 1e-6},
        )
        answer = optimistic(problem, tensor(result.x), inner_starts(problem))
        if answer.value < best.answer.value:
            best = Found(result.x, answer)
    return best


def row(group: str, problem: PublishedProblem) -> list[str]:
    """What is said of one problem."""
    begin = time.perf_counter()
    found = refined_grid(problem) if problem.outer_size in GRID else many_starts(problem)
    seconds = time.perf_counter() - begin
    gain = (problem.value - found.answer.value) / (1 + abs(problem.value))
    return [
        problem.name,
        group,
        f"{problem.outer_size} + {problem.inner_size}",
        "yes" if problem.convex_inner else "no",
        f"{problem.value:.7g}",
        f"{problem.published_value:.7g}",
        f"{found.answer.value:.7g}",
        " ".join(f"{entry:.4g}" for entry in found.u),
        f"{gain:.1e}",
        f"{seconds:.0f}",
    ]


HEAD = ["problem", "group", "sizes", "convex", "F", "published", "search's F", "search's u"]
HEAD += ["better by", "seconds"]


if __name__ == "__main__":
    print_table(__doc__.splitlines()[0], HEAD, row)
