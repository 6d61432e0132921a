"""Quadratics of finite data with a known value function, for the noise of mini-batches."""

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
from fewshot_blo.records.ranges import AtLeast, AtMost, Natural, Positive
from fewshot_blo.solving.driver import Observe
from fewshot_blo.solving.problem import PlainProblem
from fewshot_blo.studies.blocks import slices
from fewshot_blo.studies.study import AS_FOUND, Figures, Study

GAP, SLOPE, INNER = "value gap", "|gradient of the value|²", "|v - v*(u)|²"


@dataclass(frozen=True)
class Quadratic:
    """``mean_i (x_i'v)²/2 + (y_i'u)²/2 + (a_i'u)(b_i'v) + c_i'v + d_i'u``.

    Attributes:
        x, b, c: of the samples, ``[M, inner]``.
        y, a, d: ``[M, outer]``.
    """

    x: Tensor
    y: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor

    def __call__(self, v: Tensor, u: Tensor, rows: slice) -> Tensor:
        """The mean over some samples."""
        squares = 0.5 * ((self.x[rows] @ v).square() + (self.y[rows] @ u).square())
        cross = (self.a[rows] @ u) * (self.b[rows] @ v)
        return (squares + cross + self.c[rows] @ v + self.d[rows] @ u).mean()

    @cached_property
    def inner(self) -> Tensor:
        """Second derivative over v, ``[inner, inner]``."""
        return self.x.T @ self.x / len(self.x)

    @cached_property
    def outer(self) -> Tensor:
        """Over u, ``[outer, outer]``."""
        return self.y.T @ self.y / len(self.y)

    @cached_property
    def cross(self) -> Tensor:
        """Over u and v, ``[outer, inner]``."""
        return self.a.T @ self.b / len(self.a)


@checked
@dataclass(frozen=True)
class SampledQuadratics(Study):
    """G and F are means of random quadratics of rank one, G with curvatures from ``mu`` to 1.

    The value function ``h(u) = F(v*(u), u)`` is a quadratic in closed form: ``value gap`` is how
    far h is above its minimum.

    Attributes:
        samples: of each level.
        inner: entries of v.
        outer: entries of u.
        mu: smallest curvature of either loss over v and u, before sampling.
        coupling: largest singular value of the second derivative over u and v.
        batch: samples in a block of either level; 0 for all.

    Source: the quadratics of benchopt/benchmark_bilevel, whose u has one direction without
    curvature in either loss; here it has none, so that the minimum is one point.
    """

    samples: Annotated[int, AtLeast(1), AtMost(1_000_000)] = 1024
    inner: Annotated[int, AtLeast(1), AtMost(2000)] = 100
    outer: Annotated[int, AtLeast(1), AtMost(2000)] = 10
    mu: Positive = 0.1
    coupling: Positive = 0.1
    batch: Natural = 64

    def __post_init__(self) -> None:
        if not 0 < self.coupling <= self.mu <= 1:
            raise ConfigurationError(
                f"mu is {self.mu} and coupling {self.coupling}: both must be positive, mu at most "
                "1 and coupling at most mu, or the value may have no minimum"
            )

    @cached_property
    def losses(self) -> tuple[Quadratic, Quadratic]:
        """G and F."""
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        def curved(size: int) -> Tensor:
            """Samples whose second moments have eigenvalues from mu to 1."""
            basis = torch.linalg.qr(normal(size, size))[0]
            roots = torch.logspace(0, 1, size, self.mu**0.5, dtype=torch.float64)
            samples: Tensor = normal(self.samples, size) @ (basis * roots) @ basis.T
            return samples

        def make() -> Quadratic:
            x, y = curved(self.inner), curved(self.outer)
            shared = normal(self.samples, self.outer)
            across = torch.linalg.qr(normal(self.inner, self.outer))[0]
            c, d = normal(self.samples, self.inner), normal(self.samples, self.outer)
            return Quadratic(x, y, self.coupling * shared, shared @ across.T, c, d)

        return make(), make()

    @cached_property
    def _response(self) -> tuple[Tensor, Tensor]:
        """J ``[inner, outer]`` and k ``[inner]`` of ``v*(u) = J u + k``."""
        g, _ = self.losses
        return -torch.linalg.solve(g.inner, g.cross.T), -torch.linalg.solve(g.inner, g.c.mean(0))

    @cached_property
    def _value(self) -> tuple[Tensor, Tensor]:
        """H and g of ``∇h(u) = H u + g``."""
        _, f = self.losses
        j, k = self._response
        across = f.cross @ j
        curvature = f.outer + across + across.T + j.T @ f.inner @ j
        slope = f.d.mean(0) + f.cross @ k + j.T @ (f.inner @ k + f.c.mean(0))
        return curvature, slope

    @cached_property
    def solution(self) -> Tensor:
        """Where h is least, ``[outer]``."""
        curvature, slope = self._value
        solution: Tensor = -torch.linalg.solve(curvature, slope)
        return solution

    def response(self, u: Tensor) -> Tensor:
        """v*(u), ``[inner]``."""
        j, k = self._response
        return j @ u + k

    def problem(self) -> PlainProblem:
        """From zeros, float64."""
        g, f = self.losses
        blocks = slices(self.samples, self.batch)
        return PlainProblem(
            {"u": torch.zeros(self.outer, dtype=torch.float64)},
            {"v": torch.zeros(self.inner, dtype=torch.float64)},
            lambda v, u, rows: g(v["v"], u["u"], rows),
            lambda v, u, rows: f(v["v"], u["u"], rows),
            inner_blocks=blocks,
            outer_blocks=blocks,
            seed=self.seed,
        )

    def observe(self) -> Observe:
        """The value gap."""
        return lambda outer, inner: {GAP: self._figures(outer["u"])[GAP]}

    def measure(self, outer: Params, inner: Mapping[str, Tensor]) -> Mapping[str, Figures]:
        """Of u, which needs no retraining, and how far v is from the minimiser."""
        u = outer["u"]
        distance = float((inner["v"] - self.response(u)).square().sum())
        return {AS_FOUND: {**self._figures(u), INNER: distance}}

    def baselines(self) -> Mapping[str, Figures]:
        """Where the problem starts."""
        return {"u = 0": self._figures(torch.zeros(self.outer, dtype=torch.float64))}

    def _figures(self, u: Tensor) -> dict[str, float]:
        curvature, slope = self._value
        away = u - self.solution
        gradient = curvature @ u + slope
        return {
            GAP: float(0.5 * away @ curvature @ away),
            SLOPE: float(gradient.square().sum()),
        }
