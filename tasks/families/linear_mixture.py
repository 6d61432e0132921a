"""``LinearMixture``, linear functions whose coefficients come from a few clusters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, Natural
from fewshot_blo.tasks.families.family import Array, Family, Function, Noise


@checked
@dataclass(frozen=True)
class LinearMixture(Family):
    """``w·x`` with standard normal points and ``w ~ N(m_c, s²)`` around one of C centres m_c.

    The centres are drawn once, standard normal and divided by √D; each is equally likely. One
    centre with s > 0 is linear regression with a prior, whose best answer is ridge regression
    toward m_1 with penalty (noise/s)².

    Source: Kong et al., "Meta-learning for Mixed Linear Regression" (arXiv 2002.08936), where s
    is 0.

    Attributes:
        dimensions: D, how many numbers a point has.
        components: C, number of centres.
        spread: s, standard deviation of the coefficients around their centre.
        noise: standard deviation of the normal noise on targets.
        centre_seed: seed of the centres; the tasks of all splits have the same ones.
    """

    dimensions: Counting = 8
    components: Counting = 4
    spread: Noise = 0.0
    centre_seed: Natural = 0

    @property
    def inputs(self) -> int:
        return self.dimensions

    @property
    def centres(self) -> Array:
        """The centres, ``[C, D]``."""
        rng = np.random.default_rng(self.centre_seed)
        drawn: Array = rng.standard_normal((self.components, self.dimensions))
        drawn /= self.dimensions**0.5
        return drawn

    def draw(self, rng: np.random.Generator, points: int) -> tuple[Array, Function]:
        centre = self.centres[rng.integers(self.components)]
        w = centre + self.spread * rng.standard_normal(self.dimensions)
        return rng.standard_normal((points, self.dimensions)), lambda x: (x @ w)[:, None]
