"""``Harmonic``, sums of two sines with points around a place of each task's own."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fewshot_blo.records.checked import checked
from fewshot_blo.tasks.families.family import (
    Array,
    Family,
    Function,
    Interval,
    check_interval,
)


@checked
@dataclass(frozen=True)
class Harmonic(Family):
    """``a_1 sin(w x + p_1) + a_2 sin(2 w x + p_2)`` with points ``x ~ N(m, 1)``.

    The amplitudes are standard normal, the phases uniform in [0, 2π); w and m are uniform.

    Source: Lacoste et al., "Uncertainty in Multitask Transfer Learning" (arXiv 1806.07528).

    Attributes:
        frequency, centre: ends of the intervals that w and m are drawn from.
        noise: standard deviation of the normal noise on targets.

    Raises:
        DataError: if the ends of an interval do not ascend.
    """

    frequency: Interval = (5.0, 7.0)
    centre: Interval = (-4.0, 4.0)

    def __post_init__(self) -> None:
        for name in ("frequency", "centre"):
            check_interval(name, getattr(self, name))

    def draw(self, rng: np.random.Generator, points: int) -> tuple[Array, Function]:
        frequency, centre = rng.uniform(*self.frequency), rng.uniform(*self.centre)
        (a_1, a_2), (p_1, p_2) = rng.standard_normal(2), rng.uniform(0, 2 * math.pi, 2)
        x = centre + rng.standard_normal((points, 1))
        return (
            x,
            lambda x: a_1 * np.sin(frequency * x + p_1) + a_2 * np.sin(2 * frequency * x + p_2),
        )
