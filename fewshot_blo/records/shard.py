"""``Shard``: the i-th of n parts of some work, as processes and machines share it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.machine.processes import Processes, part
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting
from fewshot_blo.records.scalars import in_short

Item = TypeVar("Item")
Result = TypeVar("Result")


@checked
@dataclass(frozen=True)
class Shard:
    """One of n consecutive parts of some work, whose sizes differ by one at most.

    Attributes:
        number: i, from 1 to n.
        count: n, the number of parts.

    Raises:
        ConfigurationError: if the number is above the count.
    """

    number: Counting = 1
    count: Counting = 1

    def __post_init__(self) -> None:
        if self.number > self.count:
            raise ConfigurationError(
                f"shard is {self}: there are {self.count} parts, so number must be at most "
                f"{self.count}"
            )

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def read(cls, text: str) -> Shard:
        """From text as "2/4", of a command line.

        Raises:
            ConfigurationError: if it is something else.
        """
        found = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text, re.ASCII)
        number, count = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 1 <= number <= count:
            first = ", and parts are counted from 1" if count and not number else ""
            raise ConfigurationError(
                f"shard is {in_short(text)}: it must be a part i/n with whole numbers "
                f"1 <= i <= n, as 2/4 for the second of four parts{first}"
            )
        return cls(number, count)

    def within(self, total: int) -> range:
        """The places of this part among ``total`` items, which may be none."""
        return range(total)[part(self.number - 1, self.count, total)]

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items of this part."""
        places = self.within(len(items))
        return items[places.start : places.stop]


def by_all(
    processes: Processes,
    total: int,
    make: Callable[[Shard | None], Result],
    merge: Callable[[Sequence[Result]], Result],
) -> Result:
    """The result for all items, from those of each process for its shard of them.

    Args:
        processes: processes that all call this.
        total: number of items; with fewer of them than processes, some processes do nothing.
        make: makes the result of a shard; None for all items, in one process.
        merge: joins the results of all shards.
    """
    count = min(processes.count, total)
    if count == 1:
        return processes.from_first(lambda: make(None))
    mine = make(Shard(processes.rank + 1, count)) if processes.rank < count else None
    return merge([found for found in processes.collect(mine) if found is not None])
