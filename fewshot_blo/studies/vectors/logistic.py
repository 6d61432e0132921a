"""Regularisation of logistic regression: one decay per feature, with the exact value function."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot_blo.bilevel import Params
from fewshot_blo.errors import ConfigurationError, installed_by
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Above, AtLeast, AtMost, Below, Counting, Natural, Positive
from fewshot_blo.solving.constraints import Box, Constraint
from fewshot_blo.solving.driver import Observe
from fewshot_blo.solving.problem import PlainProblem
from fewshot_blo.studies.blocks import slices
from fewshot_blo.studies.study import AS_FOUND, Figures, Study

GAP, INNER, RANKED = "value gap", "|v - v*(u)|²", "useless features ranked last %"
DECAY = "decay"
_GRID = tuple(10.0**power for power in range(-6, 1))
_MOST_NEWTON_STEPS, _SOLVED = 50, 1e-12

Array = np.ndarray[Any, np.dtype[np.float64]]


@checked
@dataclass(frozen=True)
class LogisticRegularisation(Study):
    """``G = mean_i log(1 + exp(-y_i x_i'v)) + Σ_j exp(u_j) v_j² / 2``, ``F`` without decay.

    The data are made: features with variance 1 and correlation ``correlation^|j - k|``, labels
    drawn from a logistic model whose weights are zero for most features. ``value gap`` is how far
    ``h(u) = F(v*(u))`` is above its least value within the bounds of u. Both come from Newton's
    method on all data in NumPy and, for the latter, L-BFGS-B of SciPy on h and its exact gradient;
    they share no code with the strategies.

    Attributes:
        train: samples of G; by default as many as ijcnn1 has.
        validation: samples of F.
        features: of a sample.
        useful: features with a weight other than zero.
        correlation: of neighbouring features, in [0, 1).
        decay: of every feature at the start.
        least: smallest decay.
        most: largest decay; curvatures of G are below ``features / 4 + most``.
        batch: samples in a block of either level; 0 for all.

    Source: the problem of the ijcnn1 set in benchopt/benchmark_bilevel (Dagréou et al., arXiv
    2201.13409), on data of our own.
    """

    train: Annotated[int, AtLeast(1), AtMost(10_000_000)] = 49990
    validation: Annotated[int, AtLeast(1), AtMost(10_000_000)] = 20000
    features: Annotated[int, AtLeast(1), AtMost(10_000)] = 22
    useful: Counting = 8
    correlation: Annotated[float, Above(-1), Below(1)] = 0.5
    decay: Positive = 1.0
    least: Positive = 1e-6
    most: Positive = 1.0
    batch: Natural = 64

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.decay <= self.most:
            raise ConfigurationError(
                f"decay is {self.decay}, least is {self.least} and most is {self.most}: they must "
                "satisfy 0 < least <= decay <= most"
            )
        if not 0 < self.useful < self.features:
            raise ConfigurationError(
                f"useful is {self.useful}: it must be at least 1 and less than features, "
                f"{self.features}"
            )
        with installed_by(".[sklearn]"):  # Needed in the end: fail before the first step.
            importlib.import_module("scipy.optimize")

    @cached_property
    def signed(self) -> tuple[Tensor, Tensor]:
        """Samples times their labels ``y_i x_i``, of G ``[train, features]`` and of F."""
        generator = torch.Generator().manual_seed(self.seed)
        weights = self.truth(generator)
        places = torch.arange(self.features, dtype=torch.float64)
        covariance = self.correlation ** (places[:, None] - places).abs()
        root = torch.linalg.cholesky(covariance)

        def draw(count: int) -> Tensor:
            x = torch.randn(count, self.features, generator=generator, dtype=torch.float64) @ root.T
            chance = (x @ weights).sigmoid()
            drawn = torch.rand(count, generator=generator, dtype=torch.float64) < chance
            return torch.where(drawn[:, None], x, -x)

        return draw(self.train), draw(self.validation)

    def truth(self, generator: torch.Generator | None = None) -> Tensor:
        """Weights that the labels are drawn with, ``[features]``, in random places."""
        generator = generator or torch.Generator().manual_seed(self.seed)
        weights = torch.zeros(self.features, dtype=torch.float64)
        order = torch.randperm(self.features, generator=generator)[: self.useful]
        drawn = torch.randn(self.useful, generator=generator, dtype=torch.float64)
        # None of the useful ones is close to zero.
        weights[order] = drawn.sign() * (0.2 + drawn.abs())
        return weights

    def problem(self) -> PlainProblem:
        """From equal decays and zero weights, float64."""
        train, validation = self.signed
        start = torch.full((self.features,), math.log(self.decay), dtype=torch.float64)

        def inner_loss(v: Params, u: Params, rows: slice) -> Tensor:
            decays = 0.5 * (u["log decay"].exp() * v["weight"].square()).sum()
            return F.softplus(-(train[rows] @ v["weight"])).mean() + decays

        def outer_loss(v: Params, u: Params, rows: slice) -> Tensor:
            del u
            return F.softplus(-(validation[rows] @ v["weight"])).mean()

        return PlainProblem(
            {"log decay": start},
            {"weight": torch.zeros(self.features, dtype=torch.float64)},
            inner_loss,
            outer_loss,
            inner_blocks=slices(self.train, self.batch),
            outer_blocks=slices(self.validation, self.batch),
            seed=self.seed,
        )

    def constraints(self) -> Mapping[str, Constraint]:
        """The interval of the logarithms of the decays."""
        return {"log decay": Box(math.log(self.least), math.log(self.most))}

    @cached_property
    def _arrays(self) -> tuple[Array, Array]:
        train, validation = self.signed
        return train.numpy(), validation.numpy()

    def value(self, u: Array) -> tuple[float, Array, Array]:
        """``h(u)``, its gradient ``[features]`` and ``v*(u)``, ``[features]``.

        ``∇h = -exp(u) v* q`` with ``G_vv q = F_v``, by the implicit function theorem.
        """
        train, validation = self._arrays
        decays, v, slope = np.exp(u), np.zeros(self.features), np.full(self.features, np.inf)
        for _ in range(_MOST_NEWTON_STEPS):
            loss, slope, curvature = _logistic(train, v)
            slope, curvature = slope + decays * v, curvature + np.diag(decays)
            if np.abs(slope).max() < _SOLVED:
                break
            v = v - np.linalg.solve(curvature, slope)
        else:
            raise ConfigurationError(
                "Newton's method has not solved the inner problem: |G_v| is "
                f"{np.abs(slope).max()}; raise least, the smallest decay"
            )
        loss, f_v, _ = _logistic(validation, v)
        return loss, -decays * v * np.linalg.solve(curvature, f_v), v

    @cached_property
    def optimum(self) -> tuple[float, Array]:
        """The least value of h within the bounds, and where it is, ``[features]``."""
        from scipy.optimize import minimize

        bounds = [(math.log(self.least), math.log(self.most))] * self.features
        start = np.full(self.features, math.log(self.decay))
        found = minimize(
            lambda u: self.value(u)[:2],
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": 1000, "ftol": 0.0, "gtol": 1e-11},
        )
        return float(found.fun), found.x

    def observe(self) -> Observe:
        """The value gap."""
        return lambda outer, inner: {GAP: self._gap(outer["log decay"].detach())}

    def measure(self, outer: Params, inner: Mapping[str, Tensor]) -> Mapping[str, Figures]:
        """The gap, the distance of v, and how well decays tell useless features."""
        u = outer["log decay"].detach()
        v = torch.from_numpy(self.value(u.numpy())[2])
        distance = float((inner["weight"] - v).square().sum())
        return {AS_FOUND: {GAP: self._gap(u), INNER: distance, RANKED: self._ranked(u)}}

    def baselines(self) -> Mapping[str, Figures]:
        """The start, one decay for all features, and the optimum of SciPy."""

        def equal(decay: float) -> Tensor:
            return torch.full((self.features,), math.log(decay), dtype=torch.float64)

        gaps = {
            decay: self._gap(equal(decay)) for decay in _GRID if self.least <= decay <= self.most
        }
        best = min(gaps, key=lambda decay: gaps[decay])
        at = torch.from_numpy(self.optimum[1])
        return {
            "start": {GAP: self._gap(equal(self.decay)), DECAY: self.decay},
            "least decay": {GAP: self._gap(equal(self.least)), DECAY: self.least},
            "best decay of a grid": {GAP: gaps[best], DECAY: best},
            "optimum": {GAP: 0.0, RANKED: self._ranked(at)},
        }

    def _gap(self, u: Tensor) -> float:
        return self.value(u.numpy())[0] - self.optimum[0]

    def _ranked(self, u: Tensor) -> float:
        """Per cent of pairs in which the useless feature has the larger decay; ties count half."""
        useless = self.truth() == 0
        above = u[useless][:, None] - u[~useless]
        return 100 * float(0.5 * (above.sign() + 1).mean())


def _logistic(signed: Array, v: Array) -> tuple[float, Array, Array]:
    """The mean loss of samples times labels ``[M, D]``, its gradient and its Hessian."""
    margins = signed @ v
    loss = np.logaddexp(0, -margins).mean()
    wrong = 1 / (1 + np.exp(margins))
    slope = -(signed.T @ wrong) / len(signed)
    curvature = (signed * (wrong * (1 - wrong))[:, None]).T @ signed / len(signed)
    return float(loss), slope, curvature
