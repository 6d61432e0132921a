"""Which part of finite data the losses of one outer step are of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """Which part of its data a loss is of; the loss of all data is the mean over the parts.

    Attributes:
        index: of the part, from 0.
        count: of the parts.
    """

    index: int = 0
    count: int = 1


@dataclass(frozen=True)
class Sampling:
    """What the losses of one outer step are of; by default of all data.

    Attributes:
        inner: part of the data in G after the last inner step; None where batches are not numbered.
        outer: part of the data in F; None where batches are not numbered.
        fresh: whether G has another batch at every draw (``kernel.adapt.at_draw``).
    """

    inner: Block | None = Block()
    outer: Block | None = Block()
    fresh: bool = False
