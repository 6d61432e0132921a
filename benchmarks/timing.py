"""Times of contenders that take turns, and what they say about each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Spread:
    """A median with the least and the largest value."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of one value or more."""
        return cls(statistics.median(values), min(values), max(values))


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of one call, work queued on the device included."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Waits for all work queued on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def take_turns(
    contenders: Sequence[Name],
    measure: Callable[[Name], float | None],
    *,
    repeats: int,
    budget: float,
) -> Iterator[dict[Name, float]]:
    """Measures every contender once a round, in an order that is reversed from round to round.

    So what drifts with time, such as the clock rate, falls on all of them alike.

    Args:
        contenders: names; what is taken out of the sequence takes no part in later rounds.
        measure: seconds of one run of a contender, None if it has none.
        repeats: rounds.
        budget: seconds after which no further round starts once there are two.

    Yields:
        What was measured in each round.
    """
    start = time.perf_counter()
    for number in range(repeats):
        if number >= 2 and time.perf_counter() - start > budget:
            return
        order = list(contenders) if number % 2 == 0 else list(contenders)[::-1]
        measured = {name: measure(name) for name in order}
        yield {name: value for name, value in measured.items() if value is not None}


def ratios(slower: Sequence[float], faster: Sequence[float]) -> Spread:
    """Ratios of the runs of the same round; one that failed later has had fewer rounds."""
    return Spread.of([a / b for a, b in zip(slower, faster, strict=False)])
