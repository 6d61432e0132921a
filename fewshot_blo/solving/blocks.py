"""In which order the blocks of finite data are drawn: shuffled passes, as a pure function."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

INNER, OUTER = 0, 1
"""Levels, which draw apart."""


def shuffled(count: int, step: int, level: int, seed: int, number: int = 0) -> int:
    """The block of an outer step: each once in ``count`` outer steps.

    Args:
        count: of the blocks.
        step: outer step.
        level: ``INNER`` or ``OUTER``.
        seed: of the order.
        number: of the draw within the outer step, -1 or more; each has an order of its own.
    """
    turn, place = divmod(step, count)
    return _order(count, turn, level, seed, number)[place]


@lru_cache(maxsize=256)
def _order(count: int, turn: int, level: int, seed: int, number: int) -> tuple[int, ...]:
    generator = np.random.default_rng((level, seed, number + 1, turn))
    return tuple(int(index) for index in generator.permutation(count))
