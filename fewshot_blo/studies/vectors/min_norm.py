"""Implicit bias of the outer problem: which of many solutions gradient descent finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import AtLeast, AtMost, Counting, Positive
from fewshot_blo.studies.pictures import curves
from fewshot_blo.studies.study import Figures
from fewshot_blo.studies.vectors.quadratics import Quadratics, QuadraticStudy

DISTANCE, OUTER, INNER = "|u - min-norm u|", "outer loss", "inner loss"
MOVED, ASIDE = "|w - w0|", "|w - retrained w|"


@checked
@dataclass(frozen=True)
class MinNorm(QuadraticStudy):
    """Random :class:`Quadratics` with minimal outer loss zero, in float64.

    Cold starts with exact hypergradients converge to the outer solution of minimum norm. The inner
    solution sets ``S(u)`` are parallel, so that a warm start, which projects from one set onto the
    next, ends at the same point as descent from w_0.

    Attributes:
        inner_unknowns: W, number of inner parameters.
        inner_equations: P, number of inner equations.
        outer_unknowns: U, number of outer variables.
        outer_equations: R, number of outer equations.
        smallest: smallest singular value of A; the largest is 1.
        aligned: whether the rows of C are combinations of those of A, so that F depends only on
            directions of w that G determines, and ``F_w`` is in the range of the singular ``H``.

    Raises:
        ConfigurationError: if a level has at most as many unknowns as equations.

    Source: Vicol et al. (arXiv 2212.14032); the sizes are our own.
    """

    inner_unknowns: Annotated[int, AtLeast(1), AtMost(10_000)] = 20
    inner_equations: Counting = 6
    outer_unknowns: Annotated[int, AtLeast(1), AtMost(10_000)] = 20
    outer_equations: Counting = 3
    smallest: Positive = 0.7
    aligned: bool = False

    def __post_init__(self) -> None:
        for level, unknowns, equations in (
            ("inner", self.inner_unknowns, self.inner_equations),
            ("outer", self.outer_unknowns, self.outer_equations),
        ):
            if not 0 < equations < unknowns:
                raise ConfigurationError(
                    f"{level}_equations is {equations} and {level}_unknowns is {unknowns}: there "
                    "must be at least one equation, and more unknowns than equations"
                )

    def make_quadratics(self) -> Quadratics:
        """The problem and its closed forms."""
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        w, p = self.inner_unknowns, self.inner_equations
        u, r = self.outer_unknowns, self.outer_equations
        rows, columns = torch.linalg.qr(normal(p, p))[0], torch.linalg.qr(normal(w, p))[0]
        values = torch.linspace(1, self.smallest, p, dtype=torch.float64)
        inner_w = (rows * values) @ columns.T
        seen = normal(r, p) @ columns.T if self.aligned else normal(r, w)
        return Quadratics(
            inner_w,
            normal(p, u) / u**0.5,
            normal(p),
            seen / seen.norm(dim=1, keepdim=True),
            normal(r, u) / u**0.5,
            normal(r),
            normal(w),
        )

    def figures(self, outer: Params, inner: Params) -> dict[str, float]:
        """Distance of u to minimum norm, both losses, distance of w to w_0 and to retrained w."""
        known = self.quadratics
        again = known.retrained(outer["u"])["w"]
        return {
            DISTANCE: float((outer["u"] - known.ending(known.exact())).norm()),
            OUTER: float(known.outer_loss(inner, outer)),
            INNER: float(known.inner_loss(inner, outer)),
            MOVED: float((inner["w"] - known.start).norm()),
            ASIDE: float((inner["w"] - again).norm()),
        }

    def baselines(self) -> Mapping[str, Figures]:
        """The start u = 0, and the outer solution of minimum norm in closed form."""
        known = self.quadratics
        least = known.ending(known.exact())
        return {
            name: self.figures({"u": u}, known.retrained(u))
            for name, u in {"u = 0": 0 * least, "minimum norm, closed form": least}.items()
        }

    def draw(self, solutions: Mapping[str, Params], path: Path) -> None:
        """Draws the outer variables of each row and those of minimum norm."""
        known = self.quadratics
        every = {"closed form": known.ending(known.exact())}
        every |= {name: found["u"] for name, found in solutions.items()}
        places = [float(i) for i in range(self.outer_unknowns)]
        lines = {name: (places, u.tolist()) for name, u in every.items()}
        title, scales = (
            "Outer variables that each row found",
            {"xscale": "linear", "yscale": "linear"},
        )
        curves(title, lines, "index of the outer variable", "value", path, **scales)
