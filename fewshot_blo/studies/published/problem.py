"""What a small bilevel problem from a paper is: functions, constraints, known solution, source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

Function = Callable[[Tensor, Tensor], Tensor]
"""Of v and u, in this order as in the paper's G(v, u) and F(v, u)."""


class Bounds(NamedTuple):
    """Lower and upper bound of every entry, infinite where there is none."""

    lower: Tensor
    upper: Tensor


class Point(NamedTuple):
    """u and v together."""

    u: Tensor
    v: Tensor


def vector(*entries: float) -> Tensor:
    """In float64."""
    return torch.tensor(entries, dtype=torch.float64)


def point(u: tuple[float, ...], v: tuple[float, ...]) -> Point:
    """Of two vectors in float64."""
    return Point(vector(*u), vector(*v))


def between(lower: float, upper: float, size: int = 1) -> Bounds:
    """The same bounds for all entries."""
    return Bounds(vector(*[lower] * size), vector(*[upper] * size))


def at_least(lower: float, size: int = 1) -> Bounds:
    """One-sided bounds."""
    return between(lower, inf, size)


def fixed(bounds: Bounds) -> Callable[[Tensor], Bounds]:
    """Inner bounds that do not depend on u."""
    return lambda u: bounds


@dataclass(frozen=True)
class PublishedProblem:
    """``min F(v, u)`` over u and v, where v minimises ``G(v, u)`` subject to the inner constraints.

    The formulation is optimistic: where the inner problem has several solutions, v is the one that
    suits the outer problem best. All functions are differentiable with respect to both arguments,
    and all tensors are vectors in float64.

    Attributes:
        name: as in the collections BOLIB or BASBLib where the problem is in one of them.
        source: the paper, and where definition and solution were read.
        outer_loss: F, a scalar.
        inner_loss: G, a scalar.
        start: u and v to start from; v need not be feasible.
        solution: u and v of a global solution, to at least eight digits.
        value: F at the solution.
        published_value: F as printed in the source, rounded there; ``remarks`` say where it is not
            the optimum of the problem stated here.
        convex_inner: for every u allowed, G is convex in v on a convex feasible set.
        outer_bounds: of u, or None.
        inner_bounds: of v, as a function of u, or None.
        inner_bounds_move: whether these depend on u.
        outer_inequalities: ``H(v, u) <= 0`` ``[m]``, or None.
        outer_equalities: ``H(v, u) = 0`` ``[m]``, or None.
        inner_inequalities: ``c(v, u) <= 0`` ``[m]``, or None.
        inner_equalities: ``c(v, u) = 0`` ``[m]``, or None.
        inner_unique: for every u allowed, the inner problem has one solution.
        solution_unique: no other u and v are a global solution.
        remarks: what a user must know of the problem or of its published value.
    """

    name: str
    source: str
    outer_loss: Function
    inner_loss: Function
    start: Point
    solution: Point
    value: float
    published_value: float
    convex_inner: bool = True
    outer_bounds: Bounds | None = None
    inner_bounds: Callable[[Tensor], Bounds] | None = None
    inner_bounds_move: bool = False
    outer_inequalities: Function | None = None
    outer_equalities: Function | None = None
    inner_inequalities: Function | None = None
    inner_equalities: Function | None = None
    inner_unique: bool = True
    solution_unique: bool = True
    remarks: str = ""

    @property
    def outer_size(self) -> int:
        """Number of entries of u."""
        return len(self.start.u)

    @property
    def inner_size(self) -> int:
        """Number of entries of v."""
        return len(self.start.v)
