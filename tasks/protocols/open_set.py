"""``OpenSet``: tasks with queries of classes that have no support examples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, Way
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.protocols.protocol import Classes, Plan, Protocol, Sizes


@checked
@dataclass(frozen=True)
class OpenSet(Protocol):
    """N-way K-shot tasks with Q queries of each of the N classes and of each of M unknown ones.

    Queries of unknown classes have the label ``UNKNOWN`` (-2). Losses and accuracy leave them out;
    the metrics AUROC, AUPR and OpenSetAccuracy measure how well they are told apart. Source: Liu et
    al., 2020 (arXiv:2005.13713); Jeong et al., 2021, where N and M are 5 and Q is 15.

    Attributes:
        way: N, number of classes.
        shot: K, number of support examples a class.
        query: Q, number of query examples a class.
        unknown: M, number of unknown classes.
    """

    way: Way = 5
    shot: Counting = 1
    query: Counting = 15
    unknown: Counting = 5

    def sizes(self, classes: Classes) -> Sizes:
        every = self.way + self.unknown
        if every > len(classes.counts):
            raise DataError(
                f"{self.way}-way tasks with {self.unknown} unknown classes need {every} classes, "
                f"but this split has {len(classes.counts)}: lower way or unknown"
            )
        classes.check(every, self.shot, self.query)
        return Sizes(self.way * self.shot, every * self.query)

    def plan(self, classes: Classes, rng: np.random.Generator) -> Plan:
        every = self.way + self.unknown
        chosen = rng.choice(len(classes.counts), size=every, replace=False)
        shots = np.where(np.arange(every) < self.way, self.shot, 0)
        return Plan(chosen, shots, np.full(every, self.query), self.unknown)

    def describe(self) -> str:
        return (
            f"{self.way}-way {self.shot}-shot {self.query} queries a class, {self.unknown} unknown "
            f"class{'' if self.unknown == 1 else 'es'}"
        )
