"""Small quadratic problems with known solutions, two of them with a singular inner Hessian."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import AtLeast, AtMost, Counting
from fewshot_blo.solving.constraints import Box, Constraint
from fewshot_blo.solving.driver import Observe
from fewshot_blo.solving.problem import PlainProblem
from fewshot_blo.studies.study import AS_FOUND, RETRAINED, Figures, Study

DISTANCE = "distance to the solution"
_SIDE = 5.0


@checked
@dataclass(frozen=True)
class Synthetic(Study):
    """Synthetic examples of Mehra & Hamm, with u and v in R^n and u in a box.

    1. ``F = |u|² + |v|²``, ``G = |1 - u - v|²``: u = v = 1/2.
    2. ``F = |v|² - |u - v|²``, ``G = |u - v|²``: u = v = 0.
    3. As 1 with ``G = |A (1 - u - v)|²``, A wide, so that G has many minima.
    4. As 2 with ``|A (u - v)|²`` instead of ``|u - v|²``.

    In 3 and 4 the distance to the solution is that of projections onto the row space of A.
    Retraining is the limit of inner gradient descent for the u that was found, which is the
    minimiser nearest to the initial v.

    Attributes:
        example: number of the example, 1 to 4.
        size: n, number of entries of u and of v.
        rows: number of rows of A.

    Source: Mehra & Hamm (arXiv 1911.03432), synthetic examples.
    """

    example: Annotated[int, AtLeast(1), AtMost(4)] = 1
    size: Annotated[int, AtLeast(1), AtMost(2000)] = 10
    rows: Counting = 5

    def __post_init__(self) -> None:
        if self.rows > self.size:
            raise ConfigurationError(
                f"rows is {self.rows} and size is {self.size}: rows must be at most size"
            )

    @cached_property
    def matrix(self) -> Tensor:
        """A ``[rows, size]``, or the identity in examples 1 and 2."""
        if self.example <= 2:
            return torch.eye(self.size, dtype=torch.float64)
        generator = torch.Generator().manual_seed(2 * self.seed)
        return torch.randn(self.rows, self.size, generator=generator, dtype=torch.float64)

    @cached_property
    def projection(self) -> Tensor:
        """Projection onto the row space of A, ``[size, size]``."""
        projection: Tensor = torch.linalg.pinv(self.matrix) @ self.matrix
        return projection

    @property
    def solution(self) -> float:
        """Value of every entry of u and v at the solution."""
        return 0.5 if self.example in (1, 3) else 0.0

    def problem(self) -> PlainProblem:
        """The problem, with random initial u and v in the box."""
        generator = torch.Generator().manual_seed(2 * self.seed + 1)
        start = torch.rand(2, self.size, generator=generator, dtype=torch.float64)
        u, v = _SIDE * (2 * start - 1)
        sums = self.example in (1, 3)

        def inner_loss(v: Params, u: Params) -> Tensor:
            rest = 1 - u["u"] - v["v"] if sums else u["u"] - v["v"]
            return (self.matrix @ rest).square().sum()

        def outer_loss(v: Params, u: Params) -> Tensor:
            squares = v["v"].square().sum()
            return squares + u["u"].square().sum() if sums else squares - inner_loss(v, u)

        return PlainProblem({"u": u}, {"v": v}, inner_loss, outer_loss)

    def constraints(self) -> Mapping[str, Constraint]:
        """u stays in the box [-5, 5]^n."""
        return {"u": Box(-_SIDE, _SIDE)}

    def distance(self, u: Tensor, v: Tensor) -> float:
        """The distance ``sqrt(|P (u - u*)|² + |P (v - v*)|²)`` to the solution."""
        gaps = torch.stack([u - self.solution, v - self.solution])
        return float((gaps @ self.projection).norm())

    def observe(self) -> Observe:
        """The distance to the solution."""
        return lambda outer, inner: {DISTANCE: self.distance(outer["u"], inner["v"])}

    def measure(self, outer: Params, inner: Mapping[str, Tensor]) -> Mapping[str, Figures]:
        """The distance to the solution, and the residual ``|A (v - v*(u))|`` of v."""
        u, v, start = outer["u"], inner["v"], self.problem().inner["v"]
        target = 1 - u if self.example in (1, 3) else u
        solved = start + self.projection @ (target - start)
        residual = float((self.matrix @ (target - v)).norm())
        return {
            AS_FOUND: {DISTANCE: self.distance(u, v), "|A (v - v*(u))|": residual},
            RETRAINED: {DISTANCE: self.distance(u, solved)},
        }

    def baselines(self) -> Mapping[str, Figures]:
        """The distance of the initial u and v."""
        problem = self.problem()
        u, v = problem.outer["u"].detach(), problem.inner["v"]
        return {"start": {DISTANCE: self.distance(u, v)}}
