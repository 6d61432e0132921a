"""A bilevel problem as an experiment: its data, what is measured of a solution, baselines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fewshot_blo.bilevel import Params
from fewshot_blo.solving.constraints import Constraint
from fewshot_blo.solving.driver import Observe, Validate
from fewshot_blo.solving.problem import PlainProblem

Figures = Mapping[str, float]
"""What is measured, by names that say the unit."""

AS_FOUND, RETRAINED = "", " + retrain"
"""What follows a row's name: v as the strategy leaves it, or trained anew for the u it found."""


@dataclass(frozen=True)
class Study(ABC):
    """One problem with its data and protocol; strategies are the rows of its table.

    Attributes:
        root: folder of the data set, where there is one.
        seed: of the division of data, noise and initial weights.
    """

    root: str = ""
    seed: int = 0

    @abstractmethod
    def problem(self) -> PlainProblem:
        """The problem at its start; a pure function of the settings."""

    @abstractmethod
    def measure(self, outer: Params, inner: Mapping[str, Tensor]) -> Mapping[str, Figures]:
        """Figures of a solution, by what follows the row's name."""

    def constraints(self) -> Mapping[str, Constraint]:
        """Sets that outer variables stay in."""
        return {}

    def baselines(self) -> Mapping[str, Figures]:
        """Rows without a bilevel problem."""
        return {}

    def held_out(self) -> Validate | None:
        """A loss of data that no level sees, which tells when to stop."""
        return None

    def observe(self) -> Observe | None:
        """Figures to follow in the course of a run; the first is drawn."""
        return None

    def draw(self, solutions: Mapping[str, Params], path: Path) -> None:
        """A picture of the outer variables that were found, by row; none by default."""
        del solutions, path
