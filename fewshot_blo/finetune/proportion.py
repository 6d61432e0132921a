"""The interval of a proportion."""

from __future__ import annotations

import math


def wilson(share: float, count: float) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion, which is valid near 0 and 1 too.

    Args:
        share: the proportion, in [0, 1].
        count: number of independent answers of the same variance.

    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference" (1927).
    """
    # Not scipy's binomtest: it takes integer counts, which weighted answers do not have.
    z2 = 1.96**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = 1.96 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)
