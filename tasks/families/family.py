"""``Family``: the base class of families of functions, from which regression tasks are drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Annotated, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fewshot_blo.records.ranges import AtLeast, AtMost
from fewshot_blo.tasks.errors import DataError

Array: TypeAlias = NDArray[np.float64]
Function: TypeAlias = Callable[[Array], Array]
Interval = tuple[float, float]
"""Both ends of a uniform distribution."""
Noise = Annotated[float, AtLeast(0), AtMost(1e6)]


@dataclass(frozen=True)
class Family(ABC):
    """Settings of a family, which draws one function for each task.

    A family of your own implements ``draw``, and ``inputs`` if a point has several numbers.

    Attributes:
        noise: standard deviation of the normal noise on targets.
    """

    noise: Noise = field(default=0.0, kw_only=True)

    def describe(self) -> str:
        """Text for tables: the name, and settings other than the usual ones."""
        changed = [
            f"{own.name} {value}"
            for own in fields(self)
            if (value := getattr(self, own.name)) != own.default
        ]
        return ", ".join([type(self).__name__.lower(), *changed])

    @property
    def inputs(self) -> int:
        """D, how many numbers a point has."""
        return 1

    @abstractmethod
    def draw(self, rng: np.random.Generator, points: int) -> tuple[Array, Function]:
        """Draws the points and the function of one task.

        Args:
            rng: generator of the task; the only source of random numbers.
            points: M, number of points.

        Returns:
            The points ``[M, D]``, and a function from points ``[M, D]`` to their values
            ``[M, 1]``, without noise.
        """


def check_interval(name: str, interval: Interval) -> None:
    """Raises DataError unless the ends ascend."""
    if interval[0] > interval[1]:
        raise DataError(f"{name} is {interval}: the first end must not be above the second")
