"""``Remaining``: tasks that use all images of their classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, Way
from fewshot_blo.tasks.protocols.protocol import Classes, Plan, Protocol, Sizes


@checked
@dataclass(frozen=True)
class Remaining(Protocol):
    """N-way tasks with all images of their classes: K shots and the remaining images as queries.

    Attributes:
        way: N, number of classes.
        shot: K, number of support examples a class, where the remaining ones are queries.
        query: Q, number of query examples a class, where the remaining ones are support examples.
        remaining: whether the remaining examples are queries or support examples.
    """

    way: Way = 5
    shot: Counting = 1
    query: Counting = 15
    remaining: Literal["query", "support"] = "query"

    @property
    def _fixed(self) -> int:
        return self.shot if self.remaining == "query" else self.query

    def sizes(self, classes: Classes) -> Sizes:
        queried = self.remaining == "query"
        classes.check(self.way, self.shot if queried else 1, 1 if queried else self.query)
        fixed = self.way * self._fixed
        rest = int((classes.largest(self.way) - self._fixed).sum())
        return Sizes(*((fixed, rest) if queried else (rest, fixed)))

    def plan(self, classes: Classes, rng: np.random.Generator) -> Plan:
        chosen = rng.choice(len(classes.counts), size=self.way, replace=False)
        fixed = np.full(self.way, self._fixed)
        rest = classes.counts[chosen] - self._fixed
        return Plan(chosen, *((fixed, rest) if self.remaining == "query" else (rest, fixed)))

    def describe(self) -> str:
        if self.remaining == "query":
            return f"{self.way}-way {self.shot}-shot, all other images as queries"
        return f"{self.way}-way {self.query} queries a class, all other images as support"
