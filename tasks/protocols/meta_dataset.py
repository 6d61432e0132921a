"""``MetaDataset``: tasks of variable way, support size and shots (Triantafillou et al., 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import AtLeast, Counting, Way
from fewshot_blo.tasks.errors import DataError
from fewshot_blo.tasks.protocols.protocol import (
    Classes,
    Counts,
    Plan,
    Protocol,
    Sizes,
    ascending,
)


@checked
@dataclass(frozen=True)
class MetaDataset(Protocol):
    """Tasks of variable way, support size and imbalanced shots, as in Meta-Dataset.

    The way is uniform. All classes have equally many queries: at most half of the smallest class.
    The support size grows with a factor that is uniform in (0, 1], and is divided among the classes
    by their numbers of images times random weights. Source: Triantafillou et al., 2020
    (arXiv:1903.03096), section 3.2 and appendix; the defaults are those of the benchmark.

    Attributes:
        ways: smallest and largest number of classes; at most as many as there are.
        queries: largest number of query examples a class.
        support: largest number of support examples of a task.
        contribution: largest number of images of a class that count toward the support size.
        imbalance: weights of the classes are log-uniform in [1 / imbalance, imbalance].
        grouped: draw all classes of a task from one group, which is drawn uniformly: an alphabet
            of Omniglot. Groups are classes with the same name before the first slash. The
            benchmark's other hierarchy, WordNet for ImageNet, is not available.

    Raises:
        DataError: if ``ways`` is not ascending, or above ``support``.
    """

    ways: tuple[Way, Way] = (5, 50)
    queries: Counting = 10
    support: Counting = 500
    contribution: Counting = 100
    imbalance: Annotated[float, AtLeast(1)] = 2.0
    grouped: bool = False

    def __post_init__(self) -> None:
        _, high = ascending("ways", self.ways)
        if high > self.support:
            raise DataError(
                f"support is {self.support}, and ways goes up to {high}: every class needs a "
                "support image; raise support, or lower ways"
            )

    @property
    def most_way(self) -> int:
        return self.ways[1]

    def sizes(self, classes: Classes) -> Sizes:
        # One query and one shot of each class are certain.
        classes.check(self.ways[0], 1, 1)
        members = classes.groups if self.grouped else [np.arange(len(classes.counts))]
        for own in members:
            if len(own) < self.ways[0]:
                name = classes.names[int(own[0])].partition("/")[0]
                raise DataError(
                    f"group '{name}' has {len(own)} classes, and ways starts at {self.ways[0]}: "
                    "lower ways, leave the group out, or set grouped to false (groups are classes "
                    "with the same name before the first slash)"
                )
        largest = np.minimum(classes.largest(self.most_way) - 1, self.contribution)
        return Sizes(min(self.support, int(largest.sum())), self.most_way * self.queries)

    def plan(self, classes: Classes, rng: np.random.Generator) -> Plan:
        chosen = self._classes(classes, rng)
        counts = classes.counts[chosen]
        query = min(self.queries, int(counts.min()) // 2)
        left = counts - query
        size = np.floor(rng.random() * np.minimum(self.contribution, left) + 1).sum()
        size = min(int(size), self.support)
        bound = np.log(self.imbalance)
        weights = counts * np.exp(rng.uniform(-bound, bound, len(chosen)))
        # One shot of each class is certain; the others are divided by weight and rounded down.
        wanted = np.floor(weights / weights.sum() * (size - len(chosen))).astype(np.int64) + 1
        return Plan(chosen, np.minimum(wanted, left), np.full(len(chosen), query))

    def _classes(self, classes: Classes, rng: np.random.Generator) -> Counts:
        low, high = self.ways
        members = np.arange(len(classes.counts))
        if self.grouped:
            members = classes.groups[int(rng.integers(len(classes.groups)))]
        way = rng.integers(low, min(high, len(members)) + 1)
        return rng.choice(members, size=way, replace=False)

    def describe(self) -> str:
        low, high = self.ways
        changed = "" if self.imbalance == 2 else f", imbalance {self.imbalance:g}"
        changed += "" if self.contribution == 100 else f", contribution {self.contribution}"
        changed += ", one group a task" if self.grouped else ""
        return (
            f"Meta-Dataset {low}..{high}-way, up to {self.support} support images and "
            f"{self.queries} queries a class{changed}"
        )
