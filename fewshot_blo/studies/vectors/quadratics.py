"""Underdetermined quadratic bilevel problems, with limits of gradient descent in closed form."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params
from fewshot_blo.records.checked import checked
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
        inner_w, inner_u, inner_target: A ``[P, W]`` of full rank with P < W, B ``[P, U]`` and b
            ``[P]``.
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
        """G at ``v = {"w": w}`` and ``u = {"u": u}``."""
        residual = self.inner_w @ v["w"] + self.inner_u @ u["u"] - self.inner_target
        return 0.5 * residual.square().sum()

    def outer_loss(self, v: Params, u: Params) -> Tensor:
        """F at ``v = {"w": w}`` and ``u = {"u": u}``."""
        residual = self.outer_w @ v["w"] + self.outer_u @ u["u"] - self.outer_target
        return 0.5 * residual.square().sum()

    def problem(self) -> PlainProblem:
        """The problem with initial u = 0 and w = w_0."""
        nothing = torch.zeros_like(self.inner_u[0])
        return PlainProblem({"u": nothing}, {"w": self.start}, self.inner_loss, self.outer_loss)

    def projection(self, u: Tensor, w: Tensor) -> Tensor:
        """The projection ``[W]`` of w onto ``S(u) = argmin over w of G``."""
        lacking = self.inner_target - self.inner_u @ u - self.inner_w @ w
        nearest: Tensor = w + torch.linalg.pinv(self.inner_w) @ lacking
        return nearest

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.inner_w.T @ self.inner_w)
        return values.clamp(min=0), vectors

    def exact(self) -> Tensor:
        """The pseudoinverse ``H^+`` ``[W, W]``, which gives the hypergradient of the projection."""
        values, _ = self._spectrum
        flat = values < _NOTHING
        return self._with(torch.where(flat, 0, 1 / torch.where(flat, 1, values)))

    def series(self, terms: int, step_size: float) -> Tensor:
        """The Neumann series ``α Σ_{j<K} (I - αH)^j`` of K terms with step size α, ``[W, W]``."""
        values, _ = self._spectrum
        flat = values < _NOTHING
        sums = (1 - (1 - step_size * values) ** terms) / torch.where(flat, 1, values)
        return self._with(torch.where(flat, step_size * terms, sums))

    def damped(self, damping: float) -> Tensor:
        """The damped inverse ``(H + ε I)^-1``, ``[W, W]``."""
        return self._with(1 / (self._spectrum[0] + damping))

    def _with(self, values: Tensor) -> Tensor:
        vectors = self._spectrum[1]
        return (vectors * values) @ vectors.T

    def derivative(self, inverse: Tensor) -> Tensor:
        """``M_Q`` ``[R, U]`` for an approximate inverse Q."""
        return self.outer_u - self.outer_w @ inverse @ self.inner_w.T @ self.inner_u

    def hypergradient(self, inverse: Tensor) -> Tensor:
        """The hypergradient ``[U]`` at u = 0 and the projection of w_0, for Q = ``inverse``."""
        return -self.derivative(inverse).T @ self._wanted(self.exact())

    def _wanted(self, solved: Tensor) -> Tensor:
        """``e_S``, the outer residual ``[R]`` at u = 0 after inner steps with S = ``solved``."""
        slope = self.inner_w.T @ (self.inner_w @ self.start - self.inner_target)
        return self.outer_target - self.outer_w @ (self.start - solved @ slope)

    def ending(self, inverse: Tensor, solved: Tensor | None = None) -> Tensor:
        """The limit ``M_Q^T (M_S M_Q^T)^-1 e_S`` ``[U]`` of gradient descent on u.

        If both are exact, it is the minimum-norm outer solution ``M^+ e``.

        Args:
            inverse: Q, the approximate inverse of the hypergradients.
            solved: S, that of the inner steps; exact by default.
        """
        solved = self.exact() if solved is None else solved
        across = self.derivative(inverse).T
        end: Tensor = across @ torch.linalg.solve(
            self.derivative(solved) @ across, self._wanted(solved)
        )
        return end

    def retrained(self, u: Tensor) -> Mapping[str, Tensor]:
        """The limit of inner gradient descent from w_0, as ``{"w": w}``."""
        return {"w": self.projection(u, self.start)}


@checked
@dataclass(frozen=True)
class QuadraticStudy(Study):
    """A study of :class:`Quadratics`."""

    @abstractmethod
    def make_quadratics(self) -> Quadratics:
        """Makes the problem and its closed forms, always the same."""

    @cached_property
    def quadratics(self) -> Quadratics:
        """The problem and its closed forms."""
        return self.make_quadratics()

    @abstractmethod
    def figures(self, outer: Params, inner: Params) -> Figures:
        """The measured figures of u and w."""

    def problem(self) -> PlainProblem:
        """The problem with initial u = 0 and w = w_0."""
        return self.quadratics.problem()

    def measure(self, outer: Params, inner: Mapping[str, Tensor]) -> Mapping[str, Figures]:
        """The figures with w as found, and with w retrained from w_0."""
        again = self.quadratics.retrained(outer["u"])
        return {AS_FOUND: self.figures(outer, inner), RETRAINED: self.figures(outer, again)}
