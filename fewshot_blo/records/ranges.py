"""Ranges of settings, written beside the type: ``steps: Annotated[int, AtLeast(0)] = 5``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

LARGEST_INT = 2**62
"""Integers lie within it, so that sums of two fit into 64 bits."""

LARGEST_FLOAT = 3.4e38
"""Finite numbers lie within it: that is what float32 holds."""


@dataclass(frozen=True)
class AtLeast:
    """Values from ``low`` on.

    Attributes:
        low: the smallest value.
        why: what is wrong with others, for the message: ``or every answer is right``.
    """

    low: float
    why: str = ""


@dataclass(frozen=True)
class Above:
    """Values larger than ``low``."""

    low: float


@dataclass(frozen=True)
class AtMost:
    """Values up to ``high``."""

    high: float


@dataclass(frozen=True)
class Below:
    """Values smaller than ``high``."""

    high: float


@dataclass(frozen=True)
class OrInfinite:
    """Infinity is a value, too."""


@dataclass(frozen=True)
class NotEmpty:
    """Text, a list or a mapping with something in it."""


@dataclass(frozen=True)
class Range:
    """The numbers that all marks of an annotation allow.

    Attributes:
        low, high: ends of the range.
        above, below: whether the ends themselves are left out.
        infinite: whether infinity is in it.
        why: what is wrong with values outside; empty where it is plain.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    infinite: bool = False
    why: str = ""

    @classmethod
    def of(cls, marks: Iterable[Any]) -> Range:
        """The range of the marks behind a type; others than those of this module are passed by."""
        low, high, above, below, infinite, why = -math.inf, math.inf, False, False, False, ""
        for mark in marks:
            if isinstance(mark, AtLeast | Above):
                low, above = mark.low, isinstance(mark, Above)
                why = mark.why if isinstance(mark, AtLeast) else ""
            elif isinstance(mark, AtMost | Below):
                high, below = mark.high, isinstance(mark, Below)
            elif isinstance(mark, OrInfinite):
                infinite = True
        return cls(low, high, above, below, infinite, why)

    def has(self, value: float) -> bool:
        """Whether a number is in it; NaN never is."""
        over = value > self.low if self.above else value >= self.low
        under = value < self.high if self.below else value <= self.high
        return over and under and (self.infinite or not math.isinf(value))

    @property
    def words(self) -> str:
        """As in "it must be at least 0"; empty for all numbers."""
        low, high = _number(self.low), _number(self.high)
        if math.isinf(self.low) and math.isinf(self.high):
            return ""
        if math.isinf(self.high):
            return (
                f"at least {low}" if not self.above else f"above {low}" if self.low else "positive"
            )
        if math.isinf(self.low):
            return f"below {high}" if self.below else f"at most {high}"
        return f"in {'(' if self.above else '['}{low}, {high}{')' if self.below else ']'}"


def _number(value: float) -> str:
    return str(int(value)) if math.isfinite(value) and value == int(value) else f"{value:g}"


Natural = Annotated[int, AtLeast(0)]
Counting = Annotated[int, AtLeast(1)]
NonNegative = Annotated[float, AtLeast(0)]
Positive = Annotated[float, Above(0)]
Share = Annotated[float, AtLeast(0), AtMost(1)]
"""A number in [0, 1]."""
Decay = Annotated[float, AtLeast(0), Below(1)]
"""A number in [0, 1)."""
Way = Annotated[int, AtLeast(2, "or every answer is right")]
"""Number of classes of a task."""
Pixels = Annotated[int, AtLeast(1), AtMost(8192)]
"""Height and width of images."""
Width = Annotated[int, AtLeast(1), AtMost(4096)]
"""Number of channels or units of a layer: its weights have to fit into memory."""
Named = Annotated[str, NotEmpty()]
