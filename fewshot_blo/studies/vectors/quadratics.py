"""Quadratic bilevel problems with more unknowns than equations, and where descent on them ends."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params
from fewshot_blo.solving.problem import PlainProblem
from fewshot_blo.studies.study import AS_FOUND, RETRAINED, Figures, Study

_NOTHING = 1e-10


@dataclass(frozen=True)
class Quadratics:
    """``G = |A w + B u - b|² / 2`` and ``F = |C w + D u - d|² / 2``, from u = 0.

    With ``H = A^T A`` and ``J = A^T B``, an approximation Q of ``H^-1`` gives the hypergradient
    ``M_Q^T (C w + D u - d)``, where ``M_Q = D - C Q J``; K inner steps from ``w_0`` end at
    ``w_0 - Q_K ∇G(w_0)``, where ``Q_K`` is the Neumann series of K terms.

    Attributes:
        inner_w, inner_u, inner_target: A ``[P, W]``, B ``[P, U]`` and b ``[P]``, A of full rank
            with P < W.
        outer_w, outer_u, outer_target: C ``[R, W]``, D ``[R, U]`` and d ``[R]``, with R < U.
        start: w_0, ``[W]``.

    Source: Vicol et al. (arXiv 2212.14032).
    """

    inner_w: Tensor
    inner_u: Tensor
    inner_target: Tensor
    outer_w: Tensor
    outer_u: Tensor
    outer_target: Tensor
    start: Tensor

    def inner_loss(self, v: Params, u: Params) -> Tensor:
        """G of ``{"w": w}`` and ``{"u": u}``."""
        residual = self.inner_w @ v["w"] + self.inner_u @ u["u"] - self.inner_target
        return 0.5 * residual.square().sum()

    def outer_loss(self, v: Params, u: Params) -> Tensor:
        """F of the same."""
        residual = self.outer_w @ v["w"] + self.outer_u @ u["u"] - self.outer_target
        return 0.5 * residual.square().sum()

    def problem(self) -> PlainProblem:
        """From u = 0 and w = w_0."""
        nothing = torch.zeros_like(self.inner_u[0])
        return PlainProblem({"u": nothing}, {"w": self.start}, self.inner_loss, self.outer_loss)

    def projection(self, u: Tensor, w: Tensor) -> Tensor:
        """The point nearest to w of ``S(u) = argmin over w of G``."""
        lacking = self.inner_target - self.inner_u @ u - self.inner_w @ w
        nearest: Tensor = w + torch.linalg.pinv(self.inner_w) @ lacking
        return nearest

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.inner_w.T @ self.inner_w)
        return values.clamp(min=0), vectors

    def exact(self) -> Tensor:
        """``H^+``, by which hypergradients are those of the projection, ``[W, W]``."""
        values, _ = self._spectrum
        flat = values < _NOTHING
        return self._with(torch.where(flat, 0, 1 / torch.where(flat, 1, values)))

    def series(self, terms: int, step_size: float) -> Tensor:
        """``α Σ_{j<K} (I - αH)^j``, of K terms, ``[W, W]``."""
        values, _ = self._spectrum
        flat = values < _NOTHING
        sums = (1 - (1 - step_size * values) ** terms) / torch.where(flat, 1, values)
        return self._with(torch.where(flat, step_size * terms, sums))

    def damped(self, damping: float) -> Tensor:
        """``(H + ε I)^-1``, ``[W, W]``."""
        return self._with(1 / (self._spectrum[0] + damping))

    def _with(self, values: Tensor) -> Tensor:
        vectors = self._spectrum[1]
        return (vectors * values) @ vectors.T

    def derivative(self, inverse: Tensor) -> Tensor:
        """``M_Q``, ``[R, U]``."""
        return self.outer_u - self.outer_w @ inverse @ self.inner_w.T @ self.inner_u

    def hypergradient(self, inverse: Tensor) -> Tensor:
        """At u = 0 and the w of the projection, ``[U]``."""
        return -self.derivative(inverse).T @ self._wanted(self.exact())

    def _wanted(self, solved: Tensor) -> Tensor:
        """The change of ``C w + D u`` that outer descent has to bring about, ``[R]``."""
        slope = self.inner_w.T @ (self.inner_w @ self.start - self.inner_target)
        return self.outer_target - self.outer_w @ (self.start - solved @ slope)

    def ending(self, inverse: Tensor, solved: Tensor | None = None) -> Tensor:
        """Where gradient descent on u ends: ``M_Q^T (M_S M_Q^T)^-1 e_S``, ``[U]``.

        With both exact it is the minimum-norm outer solution ``M^+ e``.

        Args:
            inverse: Q of the hypergradients.
            solved: S of the inner steps; exact by default.
        """
        solved = self.exact() if solved is None else solved
        across = self.derivative(inverse).T
        end: Tensor = across @ torch.linalg.solve(
            self.derivative(solved) @ across, self._wanted(solved)
        )
        return end

    def retrained(self, u: Tensor) -> Mapping[str, Tensor]:
        """The inner solution that descent from w_0 reaches."""
        return {"w": self.projection(u, self.start)}


@dataclass(frozen=True)
class QuadraticStudy(Study):
    """A study of such a problem."""

    @abstractmethod
    def make_quadratics(self) -> Quadratics:
        """Makes the problem and its closed forms, always the same."""

    @cached_property
    def quadratics(self) -> Quadratics:
        """The problem and its closed forms."""
        return self.make_quadratics()

    @abstractmethod
    def figures(self, outer: Params, inner: Params) -> Figures:
        """What is measured of any u and w."""

    def problem(self) -> PlainProblem:
        """From u = 0 and w_0."""
        return self.quadratics.problem()

    def measure(self, outer: Params, inner: Mapping[str, Tensor]) -> Mapping[str, Figures]:
        """The figures of w as found, and of the w that descent from w_0 reaches."""
        again = self.quadratics.retrained(outer["u"])
        return {AS_FOUND: self.figures(outer, inner), RETRAINED: self.figures(outer, again)}
