"""What can be said of a point (u, v): whether v solves the inner problem, and u the outer one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, Params, TaskParams, task_dot
from fewshot_blo.errors import DivergenceError
from fewshot_blo.hypergrad.constrained import LAST_SMOOTHING, Scales, scales_of, solved_inner
from fewshot_blo.hypergrad.curvature import ritz_values
from fewshot_blo.hypergrad.gradients import both_gradients, inner_gradients, outer_gradients
from fewshot_blo.hypergrad.linear_solve import MINRES
from fewshot_blo.solving.constraints import Constraint

INNER_DISTANCE, CONVERGED_DISTANCE = 1e-2, 3e-4
"""Relative distance of v to a minimiser from which on there is a doubt, and for convergence."""

DISAGREEMENT, CONVERGED_DISAGREEMENT = 5e-2, 5e-3
"""Relative difference of a hypergradient from that of implicit differentiation, likewise."""

OUTER_DISTANCE = 3e-4
"""Relative distance of u to where implicit differentiation has a stationary point, likewise."""

_NEGATIVE = 1e-3
"""Share of the largest curvature from which on a negative one is no rounding."""


_COARSE = 1e-8
"""Smoothing at which it is solved from other starts."""

_LOWER = 1e-5
"""By how much G, relative to 1 + |G|, has to be lower at another point to be a doubt."""

_SPREAD = (0.3, 1.0, 1.0, 3.0, 3.0, 10.0)
"""Standard deviations of other starts of the inner problem, relative to ``1 + |v|``."""


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
        outer_distance: distance of u to a point where ``stationarity`` is zero, relative to
            ``1 + |u|``, by a second exact hypergradient; NaN where it was not measured.
        sampled: whether all this is of one batch, which is no measure of the whole.
        inner_elsewhere: with inner constraints, how much lower G is, relative to ``1 + |G|``, at
            the lowest solution that was found from other starts; zero where none is lower.
    """

    inner_residual: float
    inner_distance: float
    inner_gap: float
    inner_curvature: float
    stationarity: float
    disagreement: float
    outer_distance: float = math.nan
    sampled: bool = False
    inner_elsewhere: float = 0.0

    def figures(self) -> dict[str, float]:
        """By the names that they have in records."""
        measured = {name: value for name, value in vars(self).items() if name != "sampled"}
        return {f"certificate/{name}": value for name, value in measured.items()}

    def doubts(self, *, strict: bool = False) -> list[str]:
        """Sentences on what is not as a solution has it, each with a remedy; none of one batch.

        Args:
            strict: by the limits for convergence.
        """
        distance = CONVERGED_DISTANCE if strict else INNER_DISTANCE
        found: list[str] = []
        if self.sampled:
            return found
        if self.inner_curvature < -_NEGATIVE:
            found.append(
                f"the inner loss has negative curvature ({self.inner_curvature:.2g} of the "
                "largest): v is not a minimiser; start the inner problem elsewhere, or add a "
                "proximal or l2 term to the inner loss"
            )
        if not self.inner_distance <= distance:
            found.append(
                f"v is about {self.inner_distance:.2g} from a minimiser of the inner loss "
                "(relative to 1 + |v|), so the outer loss is not that of a solved inner problem: "
                "take more inner steps or a better step size, or leave both unset"
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
        if self.disagreement > limit and not settled:
            found.append(
                f"the strategy's hypergradient differs by {100 * self.disagreement:.2g} % from "
                "that of implicit differentiation: solve the inner problem more exactly, or use "
                "Implicit"
            )
        elif strict and self.outer_distance > OUTER_DISTANCE:
            found.append(
                f"u is about {self.outer_distance:.2g} (relative to 1 + |u|) from where the "
                "hypergradient of implicit differentiation vanishes: solve the inner problem more "
                "exactly, or use Implicit"
            )
        return found


def certify(
    problem: Bilevel,
    inner: TaskParams,
    constraints: Mapping[str, Constraint],
    gradient: Params | None = None,
    *,
    is_exact: bool = False,
    elsewhere: bool = False,
    products: int = 100,
) -> Certificate:
    """Measures at the problem's u and one v, with at most ``2 products`` and 30 Hessian products.

    Args:
        problem: of one task.
        inner: v, ``[1, ...]``.
        constraints: sets of outer variables, by name.
        gradient: the strategy's hypergradient at the same u, to compare.
        is_exact: whether with constraints it is that of implicit differentiation itself.
        elsewhere: whether an inner problem with constraints is solved from other starts, too.
        products: largest number of Hessian products of each of the two linear systems.
    """
    at = {name: p.detach() for name, p in inner.items()}
    v = {name: p.clone().requires_grad_() for name, p in at.items()}
    if problem.constraints is not None:
        return _constrained(
            problem, at, constraints, gradient, is_exact=is_exact, elsewhere=elsewhere
        )
    with torch.enable_grad():
        f_v, f_u = both_gradients(problem.outer_loss(v), v, problem.outer)
        g_v = inner_gradients(problem.inner_loss(v).sum(), v, create_graph=True)

        def product(x: TaskParams) -> TaskParams:
            with torch.enable_grad():
                return inner_gradients(task_dot(g_v, x).sum(), v)

        residual = {name: g.detach() for name, g in g_v.items()}
        values = ritz_values(product, v, min(30, products))[0]
        solver = MINRES(products, tolerance=1e-8)
        to_minimum, q = solver(product, residual), solver(product, f_v)
        of_g = outer_gradients(-task_dot(g_v, q).mean(), problem.outer)
    exact = {name: _sum(f_u[name], of_g[name], leaf) for name, leaf in problem.outer.items()}
    distance = task_dot(to_minimum, to_minimum).sqrt() / (1 + task_dot(at, at).sqrt())
    largest = values.abs().max()
    return Certificate(
        inner_residual=float(task_dot(residual, residual).sqrt()),
        inner_distance=float(distance),
        inner_gap=0.5 * float(task_dot(residual, to_minimum)),
        inner_curvature=float(values.min() / largest) if largest > 0 else 0.0,
        stationarity=projected_norm(problem.outer, exact, constraints),
        disagreement=math.nan if gradient is None else _relative(exact, gradient, f_u),
    )


def _constrained(
    problem: Bilevel,
    inner: TaskParams,
    sets: Mapping[str, Constraint],
    gradient: Params | None,
    *,
    is_exact: bool,
    elsewhere: bool,
) -> Certificate:
    """By solving the inner problem from v: the distance to its solution, and what is violated."""
    assert problem.constraints is not None
    scales = scales_of(problem, inner)
    solved = solved_inner(
        problem, inner, LAST_SMOOTHING, scales=scales, optimistic=False, softness=LAST_SMOOTHING
    )
    if is_exact and gradient is not None:
        through, disagreement = gradient, math.nan
    else:
        v = {name: p.clone().requires_grad_() for name, p in inner.items()}
        with torch.enable_grad():
            f_v, f_u = both_gradients(problem.outer_loss(v), v, problem.outer)
        of_v = solved.derivative(f_v, problem.outer)
        through = {name: _sum(f_u[name], of_v[name], leaf) for name, leaf in problem.outer.items()}
        disagreement = math.nan if gradient is None else _relative(through, gradient, f_u)
    with torch.no_grad():
        gap = problem.inner_loss(inner) - problem.inner_loss(solved.params)
        violation = _violation(problem, inner)
        # Solutions need not be unique: what counts is how much lower G could be.
        lacking = gap.clamp(min=0) / (1 + problem.inner_loss(inner).abs())
    return Certificate(
        inner_residual=violation,
        inner_distance=float(lacking.sqrt()) + violation,
        inner_gap=float(gap),
        inner_curvature=min(solved.point.curvature, 0.0),
        stationarity=projected_norm(problem.outer, through, sets),
        disagreement=disagreement,
        inner_elsewhere=_lower_by(problem, inner, scales) if elsewhere else 0.0,
    )


def _lower_by(problem: Bilevel, inner: TaskParams, scales: Scales) -> float:
    """How much lower than at v G is at the best of the solutions from random starts."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        at_v = float(problem.inner_loss(inner))
    size, best = 1 + math.sqrt(float(task_dot(inner, inner))), at_v
    for spread in _SPREAD:
        start = {
            name: p
            + spread * size * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
            for name, p in inner.items()
        }
        try:
            found = solved_inner(problem, start, _COARSE, scales=scales, optimistic=False)
        except DivergenceError:
            continue
        if _violation(problem, found.params) <= _COARSE * 1e2:
            with torch.no_grad():
                best = min(best, float(problem.inner_loss(found.params)))
    return (at_v - best) / (1 + abs(at_v))


def _violation(problem: Bilevel, inner: TaskParams) -> float:
    """The largest one of an inner constraint."""
    assert problem.constraints is not None
    with torch.no_grad():
        equal = problem.constraints.equalities(inner)
        least = problem.constraints.inequalities(inner)
    return float(torch.cat([equal.abs(), least.clamp(min=0), equal.new_zeros(1, 1)], 1).max())


def projected_norm(outer: Params, gradient: Params, constraints: Mapping[str, Constraint]) -> float:
    """Norm of ``u - P(u - h g) / h`` for a short h: of the gradient without what P cuts off."""
    total = 0.0
    for name, leaf in outer.items():
        g = gradient[name].detach().double()
        if name in constraints and bool(g.any()):
            u = leaf.detach().double()
            h = 1e-6 * (1 + u.norm()) / g.norm()
            g = (u - constraints[name].project(u - h * g)) / h
        total += float(g.square().sum())
    return math.sqrt(total)


def _sum(a: Tensor | None, b: Tensor | None, like: Tensor) -> Tensor:
    parts = [x for x in (a, b) if x is not None]
    return torch.stack(parts).sum(0) if parts else torch.zeros_like(like)


def _relative(exact: Params, found: Params, direct: Mapping[str, Tensor | None]) -> float:
    """At a stationary point both vanish, so the scale is that of the parts that cancel there."""
    difference = sum(float((exact[n] - found[n]).double().square().sum()) for n in exact)
    scale = max(
        sum(float(x.double().square().sum()) for x in part.values() if x is not None)
        for part in (exact, found, direct)
    )
    return math.sqrt(difference / scale) if scale > 0 else 0.0
