"""``Episodic``: N classes with K shots and Q queries each (Vinyals et al., 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, Way
from fewshot_blo.tasks.protocols.protocol import (
    Classes,
    Plan,
    Protocol,
    Sizes,
    ascending,
    drawn,
    in_words,
)


@checked
@dataclass(frozen=True)
class Episodic(Protocol):
    """N-way K-shot tasks with Q queries a class, equal for all classes of a task.

    Source: Vinyals et al., 2016 (arXiv:1606.04080).

    Attributes:
        way: N, number of classes, or an inclusive range to draw it from for each task.
        shot: K, number of support examples a class, or a range.
        query: Q, number of query examples a class, or a range.

    Raises:
        DataError: if a range is not ascending.
    """

    way: Way | tuple[Way, Way] = 5
    shot: Counting | tuple[Counting, Counting] = 1
    query: Counting | tuple[Counting, Counting] = 15

    apart: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("way", "shot", "query"):
            ascending(name, vars(self)[name])

    def sizes(self, classes: Classes) -> Sizes:
        shot, query = (ascending(name, vars(self)[name])[1] for name in ("shot", "query"))
        classes.check(self.most_way, shot, query)
        return Sizes(self.most_way * shot, self.most_way * query)

    def plan(self, classes: Classes, rng: np.random.Generator) -> Plan:
        # The order of the draws is that of all published tasks.
        way, shot, query = (drawn(size, rng) for size in (self.way, self.shot, self.query))
        chosen = rng.choice(len(classes.counts), size=way, replace=False)
        return Plan(chosen, np.full(way, shot), np.full(way, query))

    def describe(self) -> str:
        way, shot, query = map(in_words, (self.way, self.shot, self.query))
        return f"{way}-way {shot}-shot {query} queries a class"
