"""What can be said of a point (u, v): whether v solves the inner problem, and u the outer one."""

from __future__ import annotations

import math
from dataclasses import dataclass

INNER_DISTANCE, CONVERGED_DISTANCE = 1e-2, 3e-4
"""Relative distance of v to a minimiser from which on there is a doubt, and for convergence."""

DISAGREEMENT, CONVERGED_DISAGREEMENT = 5e-2, 5e-3
"""Relative difference of a hypergradient from that of implicit differentiation, likewise."""

OUTER_DISTANCE = 3e-4
"""Relative distance of u to where implicit differentiation has a stationary point, likewise."""

_UNDETERMINED = 1e-2
"""Share of a gradient along flat directions that is no rounding."""

_NEGATIVE = 1e-3
"""Share of the largest curvature from which on a negative one is no rounding."""


_STEPS = "take more inner steps or a better step size, or leave both unset"
_HARD = (
    "the inner loss may be ill-conditioned, have a kink near v, or no minimum; scale the variables "
    "alike, compute in float64, or add an l2 term"
)

_INFEASIBLE = 1e-3
"""Violation of a constraint from which on there may be no feasible v, or no feasible u."""

_LOWER, _LOWER_OUTER = 1e-5, 1e-2
"""By how much G and F, relative to one plus their size, have to be lower elsewhere for a doubt."""


@dataclass(frozen=True)
class Certificate:
    """Measured at one (u, v), whatever led there.

    Attributes:
        inner_residual: norm of the gradient of G over v; with inner constraints, how much the
            worst of them is violated.
        inner_distance: estimated distance of v to a stationary point of G, by a Newton step,
            relative to ``1 + |v|``. With inner constraints, the root of the gap relative to
            ``1 + |G|``, plus the violation.
        inner_gap: estimated G(v) minus its minimum, by the same step.
        inner_curvature: smallest eigenvalue of the Hessian of G over v that was found, relative
            to the largest absolute one.
        stationarity: norm of the hypergradient of implicit differentiation at (u, v), where a
            projection of u would cut it off without that part.
        disagreement: difference of the strategy's hypergradient from that of implicit
            differentiation, relative to the larger one's scale; NaN where there is none.
        undetermined: share of the gradient of F over v along directions in which G is flat; zero
            where it was not measured.
        outer_distance: distance of u to a point where ``stationarity`` is zero, relative to
            ``1 + |u|``, by a second exact hypergradient; NaN where it was not measured.
        sampled: whether all this is of one batch, which is no measure of the whole.
        inner_elsewhere: with inner constraints, how much lower G is, relative to ``1 + |G|``, at
            the lowest solution that was found from other starts; zero where none is lower.
        outer_elsewhere: likewise, how much lower F is, relative to ``1 + |F|``, at one of equal G.
        inner_violation: of the worst inner constraint; zero without.
        outer_violation: of the worst outer constraint, divided by the norm of its gradient at the
            start, relative to ``1 + |(u, v)|``; zero without.
        falls_on: one where F still falls along the way that u has gone, as far again as it went;
            zero where it rises, or was not measured.
        failure: why nothing could be measured; empty where it was.
    """

    inner_residual: float
    inner_distance: float
    inner_gap: float
    inner_curvature: float
    stationarity: float
    disagreement: float
    outer_distance: float = math.nan
    undetermined: float = 0.0
    sampled: bool = False
    inner_elsewhere: float = 0.0
    outer_elsewhere: float = 0.0
    inner_violation: float = 0.0
    outer_violation: float = 0.0
    falls_on: float = 0.0
    failure: str = ""

    def figures(self) -> dict[str, float]:
        """By the names that they have in records."""
        measured = {n: x for n, x in vars(self).items() if n not in ("sampled", "failure")}
        return {f"certificate/{name}": value for name, value in measured.items()}

    def ambiguities(self) -> list[str]:
        """Sentences on what a solution leaves open, though it is one."""
        if self.sampled or self.undetermined <= _UNDETERMINED:
            return []
        return [
            f"{100 * self.undetermined:.3g} % of the gradient of F over v are along directions in "
            "which G is flat, so that v is one of several minimisers, or the Hessian of G is "
            "singular there and says nothing of how v depends on u: add a proximal or l2 term to "
            "the inner loss"
        ]

    def doubts(self, *, strict: bool = False, chosen: bool = False) -> list[str]:
        """Sentences on what is not as a solution has it, each with a remedy.

        Of one batch, a constraint of u and v alone can be told to be violated.

        Args:
            strict: by the limits for convergence.
            chosen: whether number and size of the inner steps were left open.
        """
        distance = CONVERGED_DISTANCE if strict else INNER_DISTANCE
        found: list[str] = []
        if not self.outer_violation <= _INFEASIBLE:
            found.append(
                f"an outer constraint is violated by {self.outer_violation:.2g} (divided by the "
                "norm of its gradient, and relative to 1 + |(u, v)|): take more outer steps, or "
                "start nearer to where it holds; there may be no feasible (u, v)"
            )
        if self.sampled:
            return found
        if self.failure:
            return [*found, self.failure]
        if self.inner_curvature < -_NEGATIVE:
            found.append(
                f"the inner loss has negative curvature ({self.inner_curvature:.2g} of the "
                "largest): v is not a minimiser; start the inner problem elsewhere, or add a "
                "proximal or l2 term to the inner loss"
            )
        if self.inner_violation > _INFEASIBLE:
            found.append(
                f"an inner constraint is violated by {self.inner_violation:.2g}: there may be no "
                "feasible v for these outer variables"
            )
        elif not self.inner_distance <= distance:
            found.append(
                f"v is about {self.inner_distance:.2g} from a minimiser of the inner loss "
                "(relative to 1 + |v|), so the outer loss is not that of a solved inner problem: "
                + (_HARD if chosen else _STEPS)
            )
        if self.inner_elsewhere > _LOWER:
            found.append(
                f"the inner loss is lower by {self.inner_elsewhere:.2g} (relative to 1 + |G|) at "
                "another point: v is a local minimiser only; start the inner problem elsewhere, or "
                "give it constraints that leave one minimiser"
            )
        # At a solution both hypergradients vanish, and how they differ says nothing.
        settled = self.outer_distance <= OUTER_DISTANCE
        tight = strict and math.isnan(self.outer_distance)
        limit = CONVERGED_DISAGREEMENT if tight else DISAGREEMENT
        if self.outer_elsewhere > _LOWER_OUTER:
            found.append(
                f"the outer loss is lower by {self.outer_elsewhere:.2g} (relative to 1 + |F|) at "
                "another minimiser of the inner loss: start the inner problem elsewhere, or give "
                "it constraints that leave one minimiser"
            )
        if self.falls_on:
            found.append(
                "the outer loss still falls beyond u, as far again as u has gone from its start: "
                "there is no minimum on that way; set constraints, or add an l2 term of the outer "
                "variables to the outer loss"
            )
        if self.disagreement > limit and not settled:
            found.append(
                f"the strategy's hypergradient differs by {100 * self.disagreement:.2g} % from "
                "that of implicit differentiation: solve the inner problem more exactly, or use "
                "Implicit"
            )
        elif strict and math.isinf(self.outer_distance):
            found += self.ambiguities() or [
                "the outer loss falls ever faster along the way down from u: u is a maximum or a "
                "saddle point, or there is no minimum; start elsewhere, or set constraints"
            ]
        elif strict and self.outer_distance > OUTER_DISTANCE:
            found.append(
                f"u is about {self.outer_distance:.2g} (relative to 1 + |u|) from where the "
                "hypergradient of implicit differentiation vanishes: solve the inner problem more "
                "exactly, or use Implicit"
            )
        return found
