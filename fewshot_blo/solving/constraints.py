"""Sets that variables stay in: a step that leaves one is projected back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot_blo.bilevel import Params
from fewshot_blo.errors import ConfigurationError, DivergenceError
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import OrInfinite, Positive


class Constraint(Protocol):
    """A closed convex set.

    Attributes:
        fixed: whether it is the same for all outer variables.
    """

    @property
    def fixed(self) -> bool: ...

    def at(self, outer: Params) -> Constraint:
        """The set for these outer variables."""
        ...

    def project(self, x: Tensor) -> Tensor:
        """The point of the set that is nearest to x."""
        ...

    def equalities(self, x: Tensor) -> Tensor:
        """Functions that are zero in the set, ``[m]``."""
        ...

    def inequalities(self, x: Tensor) -> Tensor:
        """Functions that are not positive in the set, ``[k]``."""
        ...


Bound = Annotated[float, OrInfinite()] | Tensor | Callable[[Params], Tensor]
"""A number, a tensor that broadcasts against the variable, or a function of the outer variables."""


@checked
@dataclass(frozen=True, eq=False)
class Box:
    """``low ≤ x ≤ high`` for every entry.

    Attributes:
        low: lower bound of each entry; minus infinity for none.
        high: upper bound; infinity for none. Bounds of an inner variable may be functions of u.
        moves: whether it is one of those that bounds as functions of u give: where such a one is
            empty, only a projection onto it is an error.

    Raises:
        ConfigurationError: if it is empty.
    """

    low: Bound = -math.inf
    high: Bound = math.inf
    moves: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        if self.moves or callable(self.low) or callable(self.high):
            return
        low, high = torch.as_tensor(self.low), torch.as_tensor(self.high)
        if not bool((low <= high).all()):
            raise ConfigurationError(f"the box from {self.low} to {self.high} is empty")

    @property
    def fixed(self) -> bool:
        """Whether no bound is a function."""
        return not (callable(self.low) or callable(self.high))

    def at(self, outer: Params) -> Box:
        """The box with bounds for these outer variables."""
        if self.fixed:
            return self
        low, high = (b(outer) if callable(b) else b for b in (self.low, self.high))
        return Box(low, high, moves=True)

    def bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Both bounds in the shape of a variable."""
        low, high = (
            torch.as_tensor(b, dtype=like.dtype, device=like.device).expand(like.shape)
            for b in (self.low, self.high)
        )
        return low, high

    def project(self, x: Tensor) -> Tensor:
        """Clips every entry.

        Raises:
            DivergenceError: if bounds that depend on outer variables leave nothing between them.
        """
        low, high = self.bounds(x)
        if self.moves and not bool((low <= high).all()):
            raise DivergenceError(f"at these outer variables the box from {low} to {high} is empty")
        return x.clamp(low, high)

    def equalities(self, x: Tensor) -> Tensor:
        """None."""
        return x.reshape(-1)[:0]

    def inequalities(self, x: Tensor) -> Tensor:
        """``low - x`` and ``x - high`` where there is a bound."""
        low, high = self.bounds(x)
        return torch.cat([(low - x)[low.isfinite()], (x - high)[high.isfinite()]])

    def from_free(self, free: Tensor) -> Tensor:
        """Points inside the box from any numbers, in place of projection.

        A sigmoid between two bounds, a softplus from one, and the numbers themselves without.
        """
        low, high = self.bounds(free)
        between = low + (high - low) * free.sigmoid()
        above, below = low + F.softplus(free), high - F.softplus(-free)
        has_low, has_high = low.isfinite(), high.isfinite()
        one = torch.where(has_low, above, torch.where(has_high, below, free))
        return torch.where(has_low & has_high, between.nan_to_num(), one)

    def to_free(self, x: Tensor) -> Tensor:
        """The numbers that ``from_free`` takes to points inside the box.

        Raises:
            ConfigurationError: if a point is not inside.
        """
        low, high = self.bounds(x)
        if not ((low < x) & (x < high)).all():
            raise ConfigurationError(
                f"entries lie between {float(x.min())} and {float(x.max())}: they must be inside "
                f"of the box from {self.low} to {self.high}, not on its border"
            )
        has_low, has_high = low.isfinite(), high.isfinite()
        between = ((x - low) / (high - low)).logit().nan_to_num()
        above, below = _inverse_softplus(x - low), -_inverse_softplus(high - x)
        one = torch.where(has_low, above, torch.where(has_high, below, x))
        return torch.where(has_low & has_high, between, one)


def _inverse_softplus(y: Tensor) -> Tensor:
    return y + torch.log(-torch.expm1(-y))


@checked
@dataclass(frozen=True)
class Simplex:
    """``x ≥ 0`` with a given sum along an axis.

    Attributes:
        total: the sum, positive.
        dim: the axis.

    Raises:
        ConfigurationError: if the sum is not positive.
    """

    total: Positive = 1.0
    dim: int = -1

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

    @property
    def fixed(self) -> bool:
        """It is."""
        return True

    def at(self, outer: Params) -> Simplex:
        """The same for all outer variables."""
        del outer
        return self

    def equalities(self, x: Tensor) -> Tensor:
        """The sum less its value."""
        return (x.sum(self.dim) - self.total).reshape(-1)

    def inequalities(self, x: Tensor) -> Tensor:
        """``-x``."""
        return -x.reshape(-1)

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


def by_level(
    sets: Mapping[str, Constraint], outer: Params, inner: Params
) -> tuple[dict[str, Constraint], dict[str, Constraint]]:
    """Sets of outer and of inner variables; a name of both levels is that of the outer one.

    Raises:
        ConfigurationError: if one is of no variable, or one of an outer variable moves.
    """
    for name, own in sets.items():
        if name not in outer and name not in inner:
            raise ConfigurationError(
                f"there is a constraint for '{name}', which is no variable; "
                f"they are {', '.join([*outer, *inner])}"
            )
        if name in outer and not own.fixed:
            raise ConfigurationError(
                f"a bound of the outer variable '{name}' is a function of outer variables: "
                "make it an outer inequality"
            )
        _check_fits(name, own, {**inner, **outer}[name])
    of_outer = {name: own for name, own in sets.items() if name in outer}
    return of_outer, {name: own for name, own in sets.items() if name not in outer}


def _check_fits(name: str, constraint: Constraint, value: Tensor) -> None:
    if not constraint.fixed:
        return
    try:
        with torch.no_grad():
            fits = constraint.project(value).shape == value.shape
    except (RuntimeError, IndexError):
        fits = False
    if not fits:
        raise ConfigurationError(
            f"the constraint of '{name}' does not fit its shape {list(value.shape)}: bounds must "
            "be numbers or tensors that broadcast to it, and a simplex needs a last axis"
        )
