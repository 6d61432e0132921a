"""``Unequal``: classes of a task with different numbers of shots."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, Way
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.protocols.protocol import (
    Classes,
    Plan,
    Protocol,
    Sizes,
    ascending,
    in_words,
)


@checked
@dataclass(frozen=True)
class Unequal(Protocol):
    """N-way tasks whose classes have different numbers of shots, and Q queries each.

    Attributes:
        way: N, number of classes.
        shot: range of the number of shots, drawn for each class by itself.
        query: Q, number of query examples a class.
        shots: number of shots of each of the N classes, in place of ``shot``.

    Raises:
        DataError: if there are not N shots, or neither ``shots`` nor a range.
    """

    way: Way = 5
    shot: Counting | tuple[Counting, Counting] = (1, 5)
    query: Counting = 15
    shots: tuple[Counting, ...] = ()

    def __post_init__(self) -> None:
        low, high = ascending("shot", self.shot)
        if self.shots and len(self.shots) != self.way:
            raise DataError(
                f"shots has {len(self.shots)} numbers, and way is {self.way}: give one number a "
                "class"
            )
        if not self.shots and low == high:
            raise DataError(
                f"shot is {self.shot} and shots is empty, which leaves all classes equal: give a "
                "range of shot, or shots"
            )

    @property
    def _most(self) -> int:
        return max(self.shots, default=ascending("shot", self.shot)[1])

    def sizes(self, classes: Classes) -> Sizes:
        classes.check(self.way, self._most, self.query)
        support = sum(self.shots) or self.way * self._most
        return Sizes(support, self.way * self.query)

    def plan(self, classes: Classes, rng: np.random.Generator) -> Plan:
        chosen = rng.choice(len(classes.counts), size=self.way, replace=False)
        low, high = ascending("shot", self.shot)
        shots = np.array(self.shots or rng.integers(low, high + 1, self.way))
        return Plan(chosen, shots, np.full(self.way, self.query))

    def describe(self) -> str:
        shots = ",".join(map(str, self.shots)) or f"{in_words(self.shot)} (each class its own)"
        return f"{self.way}-way {shots}-shot {self.query} queries a class"
