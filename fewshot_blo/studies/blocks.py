"""Finite data in blocks of rows."""

from __future__ import annotations

from itertools import pairwise


def slices(count: int, size: int) -> list[slice]:
    """As few blocks of at most so many rows as there can be, of sizes that differ by one at most.

    Args:
        count: of the rows.
        size: of a block; 0 for one of all rows.
    """
    blocks = -(-count // size) if size else 1
    ends = [count * number // blocks for number in range(blocks + 1)]
    return [slice(*pair) for pair in pairwise(ends)]
