"""Anti-distillation: more learned targets than originals, and truncation as damping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import (
    AtLeast,
    AtMost,
    Counting,
    Natural,
    NonNegative,
    NotEmpty,
    Positive,
)
from fewshot_blo.studies.pictures import curves
from fewshot_blo.studies.study import Figures
from fewshot_blo.studies.vectors.quadratics import Quadratics, QuadraticStudy

NORM, DISTANCE, LOW, OUTER = "|u|", "distance to min-norm u %", "low frequencies %", "outer loss"
APART, ANGLE = "distance of solutions %", "angle of hypergradients °"


def fourier_features(x: Tensor, frequencies: int, decay: float) -> Tensor:
    """Fourier features ``[N, 2 frequencies + 1]`` of x ``[N]`` in [0, 1]; every row has norm 1.

    Args:
        x: positions.
        frequencies: largest frequency.
        decay: exponent: cosine and sine of frequency k are scaled by ``(1 + k)^-decay``.
    """
    k = torch.arange(frequencies + 1, dtype=x.dtype)
    sizes = (1 + k) ** -decay
    angles = 2 * torch.pi * x[:, None] * k
    waves = torch.cat([angles.cos() * sizes, angles[:, 1:].sin() * sizes[1:]], 1)
    unit: Tensor = waves / sizes.norm()
    return unit


@checked
@dataclass(frozen=True)
class AntiDistillation(QuadraticStudy):
    """``G = |Φ w - u|² / 2N``, ``F = |Φ_o w - y|² / 2R`` with N learned targets u, R < N originals.

    Φ are Fourier features of a regular grid, so that the eigenvectors of ``Φ Φ^T`` are sine and
    cosine waves. Many u make F zero. A Neumann series of K terms suppresses waves with eigenvalues
    below ``1 / (α K)``, so that the solution has larger low frequencies instead of high ones.

    Attributes:
        originals: R, number of originals, at random positions in [0, 1) with standard normal
            targets.
        learned: N, number of learned targets; odd.
        frequencies: largest frequency of the features.
        decay: exponent by which features of higher frequencies are scaled down.
        low: largest frequency that counts as low.
        terms: numbers of terms K of the closed forms in the table.
        step_size: step size α of the closed forms, which must be that of the rows' inner steps and
            solvers.

    Raises:
        ConfigurationError: if ``learned`` is even or not above ``originals``, or ``frequencies`` is
            too small.

    Source: Vicol et al. (arXiv 2212.14032); the sizes are our own.
    """

    originals: Annotated[int, AtLeast(1), AtMost(10_000)] = 3
    learned: Annotated[int, AtLeast(1), AtMost(10_000)] = 11
    frequencies: Annotated[int, AtLeast(1), AtMost(10_000)] = 20
    decay: NonNegative = 1.0
    low: Natural = 1
    terms: Annotated[tuple[Counting, ...], NotEmpty()] = (1, 3, 10, 30, 100, 1000)
    step_size: Positive = 1.0

    def __post_init__(self) -> None:
        if self.learned % 2 == 0 or not 0 < self.originals < self.learned:
            raise ConfigurationError(
                f"learned is {self.learned} and originals is {self.originals}: learned must be odd "
                "and larger than originals, which must be at least 1"
            )
        if 2 * self.frequencies + 1 <= self.learned:
            raise ConfigurationError(
                f"frequencies is {self.frequencies}: for {self.learned} learned targets it must "
                f"be at least {self.learned // 2 + 1}, so that the inner problem is underdetermined"
            )

    def make_quadratics(self) -> Quadratics:
        """The problem and its closed forms."""
        generator = torch.Generator().manual_seed(self.seed)
        n, r = self.learned, self.originals
        within = torch.rand(r, generator=generator, dtype=torch.float64)
        places = (torch.arange(r) + 0.25 + 0.5 * within) / r
        targets = torch.randn(r, generator=generator, dtype=torch.float64)
        features = fourier_features(self._grid, self.frequencies, self.decay)
        originals = fourier_features(places, self.frequencies, self.decay)
        return Quadratics(
            features / n**0.5,
            -torch.eye(n, dtype=torch.float64) / n**0.5,
            torch.zeros(n, dtype=torch.float64),
            originals / r**0.5,
            torch.zeros(r, n, dtype=torch.float64),
            targets / r**0.5,
            torch.zeros(features.shape[1], dtype=torch.float64),
        )

    @cached_property
    def _grid(self) -> Tensor:
        return torch.arange(self.learned, dtype=torch.float64) / self.learned

    def figures(self, outer: Params, inner: Params) -> dict[str, float]:
        """Norm of u, distance to minimum norm, share of low frequencies, and the outer loss."""
        u, known = outer["u"], self.quadratics
        spectrum = torch.fft.rfft(u).abs().square() * torch.tensor([1.0] + self.learned // 2 * [2])
        return {
            NORM: float(u.norm()),
            DISTANCE: 100 * _relative(u, known.ending(known.exact())),
            LOW: float(100 * spectrum[: self.low + 1].sum() / spectrum.sum()),
            OUTER: float(known.outer_loss(inner, outer)),
        }

    def _closed_form(self, inverse: Tensor) -> dict[str, float]:
        u = self.quadratics.ending(inverse)
        return self.figures({"u": u}, self.quadratics.retrained(u))

    def baselines(self) -> Mapping[str, Figures]:
        """Limits of gradient descent with series, damped and exact inverses, in closed form."""
        known = self.quadratics
        rows: dict[str, Figures] = {"exact inverse": self._closed_form(known.exact())}
        for terms in self.terms:
            series, damped = self._pair(terms)
            across, straight = known.hypergradient(damped), known.hypergradient(series)
            cosine = torch.cosine_similarity(across, straight, dim=0).clamp(max=1)
            rows[f"{terms} terms, closed form"] = self._closed_form(series)
            rows[f"damping 1/{terms}α, closed form"] = {
                **self._closed_form(damped),
                APART: 100 * _relative(known.ending(damped), known.ending(series)),
                ANGLE: float(cosine.acos().rad2deg()),
            }
        return rows

    def _pair(self, terms: int) -> tuple[Tensor, Tensor]:
        """The Neumann series of ``terms`` terms, and the damped inverse it is compared with."""
        known, step_size = self.quadratics, self.step_size
        return known.series(terms, step_size), known.damped(1 / (step_size * terms))

    def draw(self, solutions: Mapping[str, Params], path: Path) -> None:
        """Draws the learned targets, and in a file ``-damping`` distances over the terms K."""
        lines = {name: (self._grid.tolist(), u["u"].tolist()) for name, u in solutions.items()}
        title, scales = (
            "Learned targets of anti-distillation",
            {"xscale": "linear", "yscale": "linear"},
        )
        curves(title, lines, "place x", "learned target u(x)", path, **scales)
        counts = [1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000]
        pairs = [[self.quadratics.ending(q) for q in self._pair(terms)] for terms in counts]
        least, terms = self.quadratics.ending(self.quadratics.exact()), [float(n) for n in counts]
        lines = {
            "series to minimum norm": (terms, [_relative(a, least) for a, _ in pairs]),
            "damped inverse to minimum norm": (terms, [_relative(b, least) for _, b in pairs]),
            "damped inverse to series": (terms, [_relative(b, a) for a, b in pairs]),
        }
        place = path.with_name(f"{path.stem}-damping{path.suffix}")
        title = "Series of K terms and inverse with damping 1/(αK)"
        curves(title, lines, "terms K (count)", "relative distance of solutions", place)


def _relative(u: Tensor, reference: Tensor) -> float:
    return float((u - reference).norm() / reference.norm())
