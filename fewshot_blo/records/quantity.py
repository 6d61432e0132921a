"""``Quantity``: a measured quantity in logs, tables and figures: name, unit and direction."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Quantity:
    """A measured quantity.

    Attributes:
        name: name in tables, such as accuracy.
        higher_is_better: whether models are chosen for high values.
        percent: whether values are fractions, which texts show in percent.
    """

    name: str
    higher_is_better: bool = False
    percent: bool = False

    @property
    def key(self) -> str:
        """The name in files: ``mean_squared_error``."""
        return self.name.replace(" ", "_")

    @property
    def factor(self) -> float:
        """What values are multiplied by for tables and figures."""
        return 100.0 if self.percent else 1.0

    @property
    def label(self) -> str:
        """Name and unit for an axis or a column."""
        return f"{self.name} (%)" if self.percent else self.name

    @property
    def best(self) -> str:
        """``highest`` or ``lowest``."""
        return "highest" if self.higher_is_better else "lowest"

    @property
    def worst(self) -> float:
        """The value that any other one is better than."""
        return -math.inf if self.higher_is_better else math.inf

    def is_better(self, value: float, than: float) -> bool:
        """Whether a value is better than another one; NaN never is."""
        return value > than if self.higher_is_better else value < than

    def rank(self, value: float) -> float:
        """A number that is higher for better values."""
        return value if self.higher_is_better else -value

    def number(self, value: float) -> str:
        """A value without its unit: two decimals in percent, four digits otherwise."""
        return f"{100 * value:.2f}" if self.percent else f"{value:.4g}"

    def half(self, value: float) -> str:
        """The half-width of an interval."""
        return f"{100 * value:.2f}" if self.percent else f"{value:.2g}"

    def difference(self, value: float) -> str:
        """A difference of two values, with its sign and without its unit."""
        return f"{100 * value:+.2f}" if self.percent else f"{value:+.4g}"

    def text(self, value: float, half: float = math.nan) -> str:
        """A value and the half-width of its interval, which is left out if it is NaN."""
        known = "" if math.isnan(half) else f" ± {self.half(half)}"
        return f"{self.number(value)}{known}{' %' if self.percent else ''}"


ACCURACY = Quantity("accuracy", higher_is_better=True, percent=True)
