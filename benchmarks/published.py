"""Solves the published problems with settings that ``solve`` chooses.

    python benchmarks/published.py [--held-out] [--problem NAME ...] [--output TABLE.md]

Error is the difference of F to the optimum, relative to 1 or to the optimum if that is larger.
Seconds are those of the processor, on one core.
"""

from __future__ import annotations

import math
import time

from published_table import print_table

from fewshot_blo.errors import DivergenceError, NotSolvedError
from fewshot_blo.solving import Solution, solve
from fewshot_blo.studies.published import PublishedProblem, as_problem

HEAD = ["problem", "kind", "inner convex", "ended", "F", "F*", "error", "steps", "seconds"]
CLOSE = 1e-2


def attempt(published: PublishedProblem) -> tuple[str, Solution | None, float]:
    """How it ended, what was found, and seconds."""
    problem, sets = as_problem(published)
    begin = time.process_time()
    solution: Solution | None
    try:
        ended, solution = "solved", solve(problem, constraints=sets, progress=False)
    except (NotSolvedError, DivergenceError) as error:
        ended, solution = type(error).__name__, getattr(error, "solution", None)
    return ended, solution, time.process_time() - begin


def row(group: str, published: PublishedProblem) -> tuple[list[str], bool]:
    """What is printed of one problem, and whether it was solved to 1e-2."""
    ended, solution, seconds = attempt(published)
    value = math.nan
    if solution is not None:
        value = float(published.outer_loss(solution.inner["v"], solution.outer["u"]))
    error = abs(value - published.value) / max(1.0, abs(published.value))
    cells = [
        published.name,
        group,
        "yes" if published.convex_inner else "no",
        ended,
        f"{value:.6g}",
        f"{published.value:.6g}",
        f"{error:.1e}",
        "" if solution is None else str(solution.step),
        f"{seconds:.1f}",
    ]
    return cells, ended == "solved" and error <= CLOSE


def main() -> None:
    """Prints the table, and the number that was solved."""
    solved = []

    def counted(group: str, published: PublishedProblem) -> list[str]:
        cells, good = row(group, published)
        if published.convex_inner:
            solved.append(good)
        return cells

    print_table(__doc__.splitlines()[0], HEAD, counted)
    print(f"\n{sum(solved)} of {len(solved)} with a convex inner problem are solved to {CLOSE:g}.")


if __name__ == "__main__":
    main()
