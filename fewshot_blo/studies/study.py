"""``Study``: a bilevel problem with its data, its measurements and its baselines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fewshot_blo.bilevel import Params
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Natural
from fewshot_blo.solving.constraints import Constraint
from fewshot_blo.solving.driver import Observe, Validate
from fewshot_blo.solving.problem import PlainProblem

Figures = Mapping[str, float]
"""Measured figures by name; the names include the unit."""

AS_FOUND, RETRAINED = "", " + retrain"
"""Suffixes of a row's name: v as the strategy ends with it, or retrained for the u it found."""


@checked
@dataclass(frozen=True)
class Study(ABC):
    """A bilevel problem with its data and protocol; the rows of its table are strategies.

    Attributes:
        root: folder of the data set; empty if the study has none.
        seed: seed of data splits, noise and initial weights.
    """

    root: str = ""
    seed: Natural = 0

    @abstractmethod
    def problem(self) -> PlainProblem:
        """The problem with its initial variables; a pure function of the settings."""

    @abstractmethod
    def measure(self, outer: Params, inner: Mapping[str, Tensor]) -> Mapping[str, Figures]:
        """Figures of a solution by the suffix of the row's name: as found, retrained.

        Args:
            outer: u by name.
            inner: v by name, as the strategy ends with it.
        """

    def constraints(self) -> Mapping[str, Constraint]:
        """Feasible sets of outer variables by name; none by default."""
        return {}

    def baselines(self) -> Mapping[str, Figures]:
        """Figures of baselines, which solve no bilevel problem, by name; none by default."""
        return {}

    def held_out(self) -> Validate | None:
        """A loss on held-out data, used for early stopping; None by default."""
        return None

    def observe(self) -> Observe | None:
        """Figures to record during a run, of which the first is plotted; None by default."""
        return None

    def draw(self, solutions: Mapping[str, Params], path: Path) -> None:
        """Draws the outer variables that each row found; by default nothing.

        Args:
            solutions: outer variables of each row.
            path: file of the figure.
        """
        del solutions, path
