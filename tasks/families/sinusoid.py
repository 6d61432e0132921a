"""``Sinusoid``, the regression tasks of MAML."""

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
class Sinusoid(Family):
    """``a sin(x - p)`` with a uniform amplitude a, phase p and points x.

    Source: Finn et al., MAML (arXiv 1703.03400), section 5.1 and the authors' code, where the test
    of their script draws larger amplitudes, (5, 10), unless this is changed.

    Attributes:
        amplitude, phase, points: ends of the intervals that a, p and x are drawn from.
        noise: standard deviation of the normal noise on targets.

    Raises:
        DataError: if the ends of an interval do not ascend.
    """

    amplitude: Interval = (0.1, 5.0)
    phase: Interval = (0.0, math.pi)
    points: Interval = (-5.0, 5.0)

    def __post_init__(self) -> None:
        for name in ("amplitude", "phase", "points"):
            check_interval(name, getattr(self, name))

    def draw(self, rng: np.random.Generator, points: int) -> tuple[Array, Function]:
        amplitude, phase = rng.uniform(*self.amplitude), rng.uniform(*self.phase)
        x = rng.uniform(*self.points, size=(points, 1))
        return x, lambda x: amplitude * np.sin(x - phase)
