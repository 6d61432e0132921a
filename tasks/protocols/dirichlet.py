"""``Dirichlet``: tasks whose classes have imbalanced queries (Veilleux et al., 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, Positive, Way
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.protocols.protocol import Classes, Counts, Plan, Protocol, Sizes

_TRIES = 10_000


@checked
@dataclass(frozen=True)
class Dirichlet(Protocol):
    """N-way K-shot tasks with N*Q queries in all, divided among the classes by Dirichlet draws.

    Shares that need more examples than a class has are drawn again. The published code draws
    support and query examples independently, so that one may be both; here they are distinct.
    Source: Veilleux et al., 2021 (arXiv:2204.11181), where alpha is 2 and 75 queries are drawn.

    Attributes:
        way: N, number of classes.
        shot: K, number of support examples a class.
        query: Q, mean number of query examples a class.
        alpha: concentration: larger values give shares that are more equal.
    """

    way: Way = 5
    shot: Counting = 1
    query: Counting = 15
    alpha: Positive = 2.0

    @property
    def _total(self) -> int:
        return self.way * self.query

    def sizes(self, classes: Classes) -> Sizes:
        # The mean share must fit into the smallest class, or no division would.
        classes.check(self.way, self.shot, self.query)
        return Sizes(self.way * self.shot, self._total)

    def plan(self, classes: Classes, rng: np.random.Generator) -> Plan:
        chosen = rng.choice(len(classes.counts), size=self.way, replace=False)
        most = classes.counts[chosen] - self.shot
        for _ in range(_TRIES):
            queries = whole(rng.dirichlet(np.full(self.way, self.alpha)), self._total)
            if (queries <= most).all():
                return Plan(chosen, np.full(self.way, self.shot), queries)
        raise DataError(
            f"none of {_TRIES} Dirichlet({self.alpha:g}) divisions of {self._total} queries fits "
            f"into classes of {int(most.min()) + self.shot} images: lower query, or raise alpha"
        )

    def describe(self) -> str:
        return f"{self.way}-way {self.shot}-shot {self._total} queries Dirichlet({self.alpha:g})"


def whole(shares: np.ndarray[tuple[int], np.dtype[np.float64]], total: int) -> Counts:
    """Whole numbers with a sum of ``total`` from shares with a sum of 1, as in the published code.

    Shares are rounded to the nearest number. While the sum is too large (small), the one whose
    fraction is nearest to 1/2 is rounded down (up) instead; one that has been so changed is whole.

    Args:
        shares: ``[N]``.
        total: sum of the result.
    """
    numbers = shares * total
    while (excess := np.round(numbers).sum() - total) != 0:
        place = np.abs(numbers % 1 - 0.5).argmin()
        numbers[place] = np.floor(numbers[place]) if excess > 0 else np.ceil(numbers[place])
    return np.round(numbers).astype(np.int64)
