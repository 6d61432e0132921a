"""Sets that outer variables stay in: a step that leaves one is projected back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fewshot_blo.errors import ConfigurationError


class Constraint(Protocol):
    """The nearest point of a closed convex set."""

    def project(self, x: Tensor) -> Tensor:
        """The point of the set that is nearest to x."""
        ...


@dataclass(frozen=True)
class Box:
    """``low ≤ x ≤ high`` for every entry.

    Attributes:
        low: minus infinity for none.
        high: infinity for none.

    Raises:
        ConfigurationError: if it is empty.
    """

    low: float = -float("inf")
    high: float = float("inf")

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ConfigurationError(f"the box from {self.low} to {self.high} is empty")

    def project(self, x: Tensor) -> Tensor:
        """Clips every entry."""
        return x.clamp(self.low, self.high)

    def from_free(self, free: Tensor) -> Tensor:
        """Points inside the box from any numbers, in place of projection: a sigmoid.

        Raises:
            ConfigurationError: if the box is not bounded.
        """
        self._check_bounded()
        return self.low + (self.high - self.low) * free.sigmoid()

    def to_free(self, x: Tensor) -> Tensor:
        """The numbers that ``from_free`` takes to points inside the box.

        Raises:
            ConfigurationError: if the box is not bounded, or a point is not inside.
        """
        self._check_bounded()
        if not ((self.low < x) & (x < self.high)).all():
            raise ConfigurationError(
                f"entries lie between {float(x.min())} and {float(x.max())}: they must be inside "
                f"of the box from {self.low} to {self.high}, not on its border"
            )
        return ((x - self.low) / (self.high - self.low)).logit()

    def _check_bounded(self) -> None:
        if not math.isfinite(self.high - self.low):
            raise ConfigurationError(
                f"the box from {self.low} to {self.high} has no sigmoid: give both bounds"
            )


@dataclass(frozen=True)
class Simplex:
    """``x ≥ 0`` with a given sum along an axis.

    Attributes:
        total: the sum, positive.
        dim: the axis.

    Raises:
        ConfigurationError: if the sum is not positive.
    """

    total: float = 1.0
    dim: int = -1

    def __post_init__(self) -> None:
        if not self.total > 0:
            raise ConfigurationError(f"the simplex of sum {self.total} is empty or a point")

    def project(self, x: Tensor) -> Tensor:
        """``max(x - θ, 0)`` with the one θ that gives the sum.

        Source: Duchi et al., "Efficient Projections onto the l1-Ball for Learning in High
        Dimensions" (ICML 2008), figure 1.
        """
        x = x.movedim(self.dim, -1)
        ordered = x.sort(dim=-1, descending=True).values
        counts = torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=x.dtype)
        thresholds = (ordered.cumsum(-1) - self.total) / counts
        support = (ordered > thresholds).sum(-1, keepdim=True)
        theta = thresholds.gather(-1, support - 1)
        return (x - theta).clamp(min=0).movedim(-1, self.dim)

    def from_free(self, free: Tensor) -> Tensor:
        """Points inside the simplex from any numbers, in place of projection: a softmax."""
        return self.total * free.softmax(self.dim)

    def to_free(self, x: Tensor) -> Tensor:
        """Numbers that ``from_free`` takes to points inside the simplex.

        Raises:
            ConfigurationError: if an entry is not positive.
        """
        if not (x > 0).all():
            raise ConfigurationError(
                f"the smallest entry is {float(x.min())}: a softmax gives positive ones alone"
            )
        return x.log()
