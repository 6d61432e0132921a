"""Memory of warm starts: one learned example replaces many given ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import AtLeast, AtMost, Counting
from fewshot_blo.solving.problem import PlainProblem
from fewshot_blo.studies.pictures import curves
from fewshot_blo.studies.study import AS_FOUND, RETRAINED, Figures, Study
from fewshot_blo.studies.vectors.anti_distillation import fourier_features

OUTER, REMEMBERED, SIZE = "outer loss", "remembered %", "|w|"


@checked
@dataclass(frozen=True)
class OnePoint(Study):
    """``G = (φ(x) w - y)² / 2`` of one learned example (x, y), ``F`` the mean over many given ones.

    φ are Fourier features of norm 1, so that one inner step of size 1 projects w onto ``S(x, y)``,
    the set of minimisers. From zero it gives ``w = y φ(x)``, a single bump. With a warm start w
    retains a part of all earlier examples (x, y).

    Attributes:
        given: number of examples in F, on a regular grid.
        frequencies: largest frequency of the features.
        waves: largest frequency of the target function in F.
        begin: initial x, in [0, 1]; the initial y is zero.

    Source: Vicol et al. (arXiv 2212.14032), the toy problem in their figures; this one is our own.
    """

    given: Annotated[int, AtLeast(1), AtMost(10_000)] = 30
    frequencies: Annotated[int, AtLeast(1), AtMost(10_000)] = 10
    waves: Counting = 3
    begin: float = 0.3

    def features(self, x: Tensor) -> Tensor:
        """Features φ(x) ``[N, 2 frequencies + 1]`` of positions x ``[N]``."""
        return fourier_features(x, self.frequencies, 0.0)

    @cached_property
    def places(self) -> Tensor:
        """Positions of the examples in F, ``[given]``."""
        return torch.arange(self.given, dtype=torch.float64) / self.given

    @cached_property
    def targets(self) -> Tensor:
        """Targets of the examples in F, a random function with mean square 1, ``[given]``."""
        generator = torch.Generator().manual_seed(self.seed)
        weights = torch.randn(2 * self.waves + 1, generator=generator, dtype=torch.float64)
        values = fourier_features(self.places, self.waves, 0.0) @ weights
        return values / values.square().mean().sqrt()

    def _loss(self, w: Tensor) -> Tensor:
        return 0.5 * (self.features(self.places) @ w - self.targets).square().mean()

    def problem(self) -> PlainProblem:
        """The problem in float64, with initial w = 0."""
        start = torch.zeros(2 * self.frequencies + 1, dtype=torch.float64)
        example = {"x": torch.full((1,), self.begin), "y": torch.zeros(1)}
        return PlainProblem(
            {name: value.double() for name, value in example.items()},
            {"w": start},
            lambda v, u: 0.5 * (self.features(u["x"]) @ v["w"] - u["y"]).square().sum(),
            lambda v, u: self._loss(v["w"]),
        )

    def measure(self, outer: Params, inner: Mapping[str, Tensor]) -> Mapping[str, Figures]:
        """The outer loss, and its reduction beyond retraining in % of the loss at w = 0."""
        again = self.features(outer["x"])[0] * outer["y"]
        nothing = float(self._loss(torch.zeros_like(again)))
        found, anew = float(self._loss(inner["w"])), float(self._loss(again))
        memory = {REMEMBERED: 100 * (anew - found) / nothing, SIZE: float(inner["w"].norm())}
        return {AS_FOUND: {OUTER: found, **memory}, RETRAINED: {OUTER: anew}}

    def baselines(self) -> Mapping[str, Figures]:
        """The outer loss at w = 0, with the best example on a fine grid, and with w fitted to F."""
        features = self.features(self.places)
        bumps = self.features(torch.linspace(0, 1, 1001, dtype=torch.float64)) @ features.T
        gains = (bumps @ self.targets).square() / bumps.square().sum(1)
        least = 0.5 * (1 - gains.max() / self.given)
        fitted = torch.linalg.lstsq(features, self.targets[:, None]).solution[:, 0]
        return {
            "w = 0": {OUTER: 0.5},
            "best single example": {OUTER: float(least)},
            "w fitted to the given examples": {OUTER: float(self._loss(fitted))},
        }

    def draw(self, solutions: Mapping[str, Params], path: Path) -> None:
        """Draws the given targets and the function retrained on each row's learned example."""
        given = self.features(self.places)
        every = {"given": self.targets}
        every |= {
            f"{name} + retrain": given @ self.features(u["x"])[0] * u["y"]
            for name, u in solutions.items()
        }
        lines = {name: (self.places.tolist(), y.tolist()) for name, y in every.items()}
        title = "Functions retrained on one learned example"
        curves(title, lines, "place x", "value", path, xscale="linear", yscale="linear")
