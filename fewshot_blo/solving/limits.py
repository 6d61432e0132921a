"""Constraints of the outer problem that are functions of v and u, by multipliers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fewshot_blo.bilevel import Params
from fewshot_blo.errors import ConfigurationError, DivergenceError
from fewshot_blo.solving.points import copies, move, norm
from fewshot_blo.solving.problem import Limit, PlainProblem

_MET = 1e-6
"""Violation, relative to 1 plus the largest entry at the start, that counts as none."""

_MOST_WEIGHT, _INFEASIBLE = 1e7, 1e-3
"""γ at which a violation, relative as above, says that the constraints cannot be met."""

_FEWEST, _EARLY = 2, 5
"""Fewest outer steps between two updates: near a minimum, and else."""

_LOST, _HEAVIER = 1e2, 10.0
"""A violation, relative as above, at which u has run away, and the factor of γ then."""

_WEIGHT, _GROWTH, _ENOUGH = 10.0, 4.0, 0.25
"""γ at the start, its factor, and the share of the violation that has to be left without it."""


@dataclass
class OuterLimits:
    """The augmented Lagrangian of the outer constraints.

    ``F + <λ, h> + γ/2 |h|² + (|max(μ + γ c, 0)|² - |μ|²) / (2γ)`` in place of F, for ``h = 0`` and
    ``c ≤ 0``: the slack variables s of ``c + s² = 0`` are solved for. Where outer steps have become
    short, ``λ ← λ + γ h``, ``μ ← max(μ + γ c, 0)``, and γ grows if the violation has not fallen.
    Where steps are not watched, as their number is named, ``updated_when_due`` says when.

    Each entry of h and c is divided by the norm of its gradient over u and v at the start, so that
    the units of a constraint do not matter.

    Attributes:
        equal: λ, ``[m]``, of the divided h.
        least: μ, ``[k]``, of the divided c.
        sizes: by which h and c are divided, ``[m]`` and ``[k]``.
        weight: γ.
        scale: 1 plus the largest entry of h and c at the start.
        violation: at the last update.
        moved: outer steps taken at the last update where steps are not watched.

    Source: Mehra & Hamm (arXiv 1911.03432), inequality constraints by slack variables; solved for
    and with multipliers: Nocedal & Wright, "Numerical Optimization", chapter 17.
    """

    equal: Tensor
    least: Tensor
    sizes: tuple[Tensor, Tensor]
    weight: float = _WEIGHT
    scale: float = 1.0
    violation: float = float("inf")
    moved: int = 0

    @classmethod
    def of(cls, problem: PlainProblem) -> OuterLimits:
        """Multipliers of zero.

        Raises:
            ConfigurationError: if a constraint is not a vector.
        """
        limits = (problem.outer_equalities, problem.outer_inequalities)
        sizes = _sizes(limits[0], problem), _sizes(limits[1], problem)
        none = torch.zeros_like(sizes[0]), torch.zeros_like(sizes[1])
        made = cls(*none, sizes)
        with torch.no_grad():
            start = torch.cat(made._divided(problem, problem.inner, problem.outer))
        made.scale = 1 + (float(start.abs().max()) if start.numel() else 0.0)
        return made

    def _divided(
        self, problem: PlainProblem, v: Mapping[str, Tensor], u: Params
    ) -> tuple[Tensor, Tensor]:
        """h and c."""
        h, c = _value(problem.outer_equalities, v, u), _value(problem.outer_inequalities, v, u)
        return h / self.sizes[0], c / self.sizes[1]

    @property
    def multipliers(self) -> dict[str, Tensor]:
        """By the names of the constraints; empty without."""
        named = {"outer_equalities": self.equal, "outer_inequalities": self.least}
        pairs = zip(named.items(), self.sizes, strict=True)
        return {name: value / size for (name, value), size in pairs if value.numel()}

    @property
    def absent(self) -> bool:
        """Whether there are no such constraints."""
        return not (self.equal.numel() or self.least.numel())

    def added_to(self, problem: PlainProblem) -> PlainProblem:
        """The problem with the augmented Lagrangian in place of F."""
        if self.absent:
            return problem
        equal, least, weight = self.equal, self.least, self.weight

        def outer_loss(v: Mapping[str, Tensor], u: Params, *batch: Any) -> Tensor:
            h, c = self._divided(problem, v, u)
            pushed = (least + weight * c).clamp(min=0)
            inequalities = (pushed.square() - least.square()).sum() / (2 * weight)
            return (
                problem.outer_loss(v, u, *batch)
                + equal @ h
                + weight / 2 * h.square().sum()
                + inequalities
            )

        return replace(problem, outer_loss=outer_loss)

    def updated_when_due(
        self,
        problem: PlainProblem,
        seen: tuple[Params, Mapping[str, Tensor]],
        step: int,
        every: int,
        *,
        solved: bool,
        adapts: bool,
    ) -> bool:
        """Moves the multipliers after an outer step, if it is time; returns whether they moved.

        It is time once u was near a minimum for the multipliers at hand, at multiples of ``every``,
        and before the first one after 5, 10, 15, 22, 33, 49, ... steps. So a run of few steps moves
        them, too; and as the times do not depend on how many there will be, it can go on to more.

        Args:
            problem: whose outer variables are moved back to those of the step where it adapts.
            seen: u and v that the step was taken from.
            step: outer steps taken.
            every: outer steps between records.
            solved: whether u was near such a minimum.
            adapts: whether the outer steps adapt to F. Those of a fixed size may become too long
                for a larger γ, which has ``every`` steps each time, then.
        """
        waited = step - self.moved
        early = step < every and waited >= max(_EARLY, self.moved // 2)
        soon = solved and waited >= _FEWEST
        if self.absent or not (early or soon or step // every > self.moved // every):
            return False
        ahead, (here, inner) = copies(problem.outer), seen
        move(problem.outer, here)
        self.update(problem, inner, may_grow=step % every == 0 or (solved and adapts))
        if not adapts:
            move(problem.outer, ahead)
        self.moved = step
        return True

    @torch.no_grad()
    def update(
        self, problem: PlainProblem, inner: Mapping[str, Tensor], *, may_grow: bool = True
    ) -> bool:
        """Moves the multipliers where a constraint is violated; returns whether none is.

        Args:
            problem: with its outer variables as they are.
            inner: v.
            may_grow: whether γ may be raised.

        Raises:
            DivergenceError: if the constraints seem to have no feasible point.
        """
        if self.absent:
            return True
        h, c = self._divided(problem, inner, problem.outer)
        violation, slack = self._violation(h, c)
        self.equal = self.equal + self.weight * h
        self.least = (self.least + self.weight * c).clamp(min=0)
        if may_grow:
            if violation > max(_ENOUGH * self.violation, _MET * self.scale):
                self.weight *= _GROWTH
            self.violation = violation
        if self.weight > _MOST_WEIGHT and violation > _INFEASIBLE * self.scale:
            raise DivergenceError(
                f"outer constraints are violated by {violation:.2g} (each divided by the norm of "
                f"its gradient), though a penalty of weight {self.weight:.2g} is on them: there "
                "may be no feasible (u, v), or none near the start"
            )
        return max(violation, slack) <= _MET * self.scale

    @torch.no_grad()
    def lost(self, problem: PlainProblem, inner: Mapping[str, Tensor]) -> bool:
        """Whether u has run away from the constraints, where F falls faster than γ holds it.

        γ is then ten times as large, and the multipliers are zero again.
        """
        if self.absent or self.weight > _MOST_WEIGHT:
            return False
        violation, _ = self._violation(*self._divided(problem, inner, problem.outer))
        if not violation > _LOST * self.scale:
            return False
        self.weight *= _HEAVIER
        self.equal, self.least = torch.zeros_like(self.equal), torch.zeros_like(self.least)
        self.violation = float("inf")
        return True

    def _violation(self, h: Tensor, c: Tensor) -> tuple[float, float]:
        """The largest violation; and the largest slack of a constraint with a multiplier."""
        violated = torch.cat([h.abs(), c.clamp(min=0), h.new_zeros(1)]).max()
        # Complementarity: max(c, -μ/γ) is zero where c is active or μ is zero.
        slack = torch.cat([torch.maximum(c, -self.least / self.weight).abs(), c.new_zeros(1)]).max()
        return float(violated), float(slack)

    @torch.no_grad()
    def violation_at(self, problem: PlainProblem, inner: Mapping[str, Tensor]) -> float:
        """The largest violation relative to ``1 + |(u, v)|``; zero without constraints."""
        if self.absent:
            return 0.0
        violation, _ = self._violation(*self._divided(problem, inner, problem.outer))
        return violation / (1 + math.hypot(norm(problem.outer), norm(inner)))

    @torch.no_grad()
    def figures(self, problem: PlainProblem, inner: Mapping[str, Tensor]) -> dict[str, float]:
        """The violation, and γ, for a record; empty without constraints."""
        if self.absent:
            return {}
        h, c = self._divided(problem, inner, problem.outer)
        return {"outer/violation": self._violation(h, c)[0], "outer/penalty_weight": self.weight}

    def plain(self) -> dict[str, Any]:
        """For a checkpoint."""
        return dict(vars(self))

    def restore(self, plain: Mapping[str, Any], device: torch.device) -> None:
        """Takes up what ``plain`` returned."""
        for name, value in plain.items():
            setattr(self, name, tree_map_only(Tensor, lambda x: x.to(device), value))


def _value(limit: Limit | None, v: Mapping[str, Tensor], u: Params) -> Tensor:
    if limit is None:
        return next(iter(v.values())).new_zeros(0)
    value = limit(v, u)
    if value.ndim != 1:
        raise ConfigurationError(
            f"a constraint has shape {list(value.shape)}: it must return a vector, [1] for one"
        )
    return value


def _sizes(limit: Limit | None, problem: PlainProblem) -> Tensor:
    """The norm of each entry's gradient over u and v at the start; 1 where it is zero."""
    leaves = {name: p.detach().requires_grad_() for name, p in problem.inner.items()}
    known = [*leaves.values(), *problem.outer.values()]
    with torch.enable_grad():
        value = _value(limit, leaves, problem.outer)
    if not value.requires_grad:
        return torch.ones_like(value)
    norms = []
    for entry in value:
        slopes = torch.autograd.grad(entry, known, retain_graph=True, materialize_grads=True)
        norms.append(torch.cat([x.reshape(-1) for x in slopes]).norm())
    sizes = torch.stack(norms).detach()
    return torch.where(sizes > 0, sizes, 1)
