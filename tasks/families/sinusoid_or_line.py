"""``SinusoidOrLine``, two kinds of functions in one family."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fewshot_blo.records.checked import checked
from fewshot_blo.tasks.families.family import (
    Array,
    Family,
    Function,
    Interval,
    Noise,
    check_interval,
)
from fewshot_blo.tasks.families.sinusoid import Sinusoid


@checked
@dataclass(frozen=True)
class SinusoidOrLine(Family):
    """A sinusoid of MAML or, as often, a line ``a x + b``; with noise.

    Source: Finn et al., "Probabilistic MAML" (arXiv 1806.02817): slope and intercept
    in [-3, 3], noise of standard deviation 0.3.

    Attributes:
        slope, intercept: ends of the intervals that a and b are drawn from.
        noise: standard deviation of the normal noise on targets.

    Raises:
        DataError: if the ends of an interval do not ascend.
    """

    slope: Interval = (-3.0, 3.0)
    intercept: Interval = (-3.0, 3.0)
    noise: Noise = field(default=0.3, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("slope", "intercept"):
            check_interval(name, getattr(self, name))

    def draw(self, rng: np.random.Generator, points: int) -> tuple[Array, Function]:
        is_line = rng.random() < 0.5
        x, sinusoid = Sinusoid().draw(rng, points)
        slope, intercept = rng.uniform(*self.slope), rng.uniform(*self.intercept)
        return x, (lambda x: slope * x + intercept) if is_line else sinusoid
