"""A counterexample: the squared inner gradient has minima that are not inner solutions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params
from fewshot_blo.records.checked import checked
from fewshot_blo.solving.problem import PlainProblem
from fewshot_blo.studies.pictures import curves
from fewshot_blo.studies.study import AS_FOUND, RETRAINED, Figures, Study

TRAP = 2 * math.pi / 3
Y, SLOPE, INNER, OUTER = "y", "|inner gradient|", "inner loss", "outer loss"


@checked
@dataclass(frozen=True)
class Spurious(Study):
    """``F = sin²(y - 2π/3) + x²/2``, ``G = y² + 2 sin² y``, whose only stationary point is y = 0.

    At y = 2π/3 both ``F_y`` and ``G_yy`` are zero, and ``F + <ν, G_y> + ρ/2 G_y²`` has a local
    minimum for any ν ≥ 0 and ρ > 0, where ``G_y`` is 2.46. The outer variable x has no effect on y.

    Attributes:
        begin: initial y.

    Source: Shen & Chen (arXiv 2302.05185), counterexample to penalties on the inner gradient.
    """

    begin: float = 2.0

    def problem(self) -> PlainProblem:
        """The problem in float64, with initial x = 1."""
        return PlainProblem(
            {"x": torch.ones(1, dtype=torch.float64)},
            {"y": torch.tensor([self.begin], dtype=torch.float64)},
            lambda v, u: _inner(v["y"]).sum() + 0 * u["x"].sum(),
            lambda v, u: _outer(v["y"]).sum() + 0.5 * u["x"].square().sum(),
        )

    def measure(self, outer: Params, inner: Mapping[str, Tensor]) -> Mapping[str, Figures]:
        """y, the absolute inner gradient, and both losses."""
        return {
            AS_FOUND: _figures(inner["y"], outer["x"]),
            RETRAINED: _figures(torch.zeros_like(inner["y"]), outer["x"]),
        }

    def draw(self, solutions: Mapping[str, Params], path: Path) -> None:
        """Draws the penalised objectives over y: penalties on the inner gradient and the loss."""
        y = torch.linspace(-0.5, 3, 200, dtype=torch.float64)
        slopes = 2 * y + 2 * (2 * y).sin()
        values = {f"F + {rho}/2 G_y²": _outer(y) + 0.5 * rho * slopes**2 for rho in (1, 10, 100)}
        values |= {f"F + {lam} G": _outer(y) + lam * _inner(y) for lam in (1, 10)}
        lines = {name: (y.tolist(), value.tolist()) for name, value in values.items()}
        title = "Penalised outer objectives: spurious minima of penalties on the gradient"
        curves(title, lines, "inner variable y", "penalised objective", path, xscale="linear")


def _inner(y: Tensor) -> Tensor:
    return y.square() + 2 * y.sin().square()


def _outer(y: Tensor) -> Tensor:
    return (y - TRAP).sin().square()


def _figures(y: Tensor, x: Tensor) -> dict[str, float]:
    return {
        Y: float(y),
        SLOPE: float((2 * y + 2 * (2 * y).sin()).abs()),
        INNER: float(_inner(y)),
        OUTER: float(_outer(y) + 0.5 * x.square()),
    }
