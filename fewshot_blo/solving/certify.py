"""Measures a certificate."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, Params, TaskParams, task_dot
from fewshot_blo.errors import DivergenceError
from fewshot_blo.hypergrad.constrained import LAST_SMOOTHING, Scales, scales_of, solved_inner
from fewshot_blo.hypergrad.curvature import ritz_values
from fewshot_blo.hypergrad.gradients import (
    both_gradients,
    hessian_products,
    inner_gradients,
    outer_gradients,
)
from fewshot_blo.hypergrad.linear_solve import MatVec, chosen_solver
from fewshot_blo.solving.certificate import Certificate
from fewshot_blo.solving.constraints import Constraint
from fewshot_blo.solving.points import distance, norm, projected

_COARSE = 1e-8
"""Smoothing at which an inner problem is solved from other starts."""

_EQUAL, _FEASIBLE = 1e-6, 1e-5
"""Difference of G, relative to 1 + |G|, and violation of a constraint that count as none."""

_TINY, _FLAT = 1e-6, 1e-4
"""Norm of F_v below which it is nothing, and curvature relative to the largest that is none."""

_SPREAD = (0.3, 1.0, 1.0, 3.0, 3.0, 10.0)
"""Standard deviations of other starts of the inner problem, relative to ``1 + |v|``."""


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
        product = hessian_products(g_v, v)
        residual = {name: g.detach() for name, g in g_v.items()}
        values = ritz_values(product, v, min(30, products))[0]
        solver = chosen_solver(f_v, products)
        to_minimum, q = solver(product, residual), solver(product, f_v)
        undetermined = _flat_share(product, f_v, q, float(values.abs().max()))
        of_g = outer_gradients(-task_dot(g_v, q).mean(), problem.outer)
    exact = {name: _sum(f_u[name], of_g[name], leaf) for name, leaf in problem.outer.items()}
    away = task_dot(to_minimum, to_minimum).sqrt() / (1 + task_dot(at, at).sqrt())
    largest = values.abs().max()
    return Certificate(
        inner_residual=float(task_dot(residual, residual).sqrt()),
        inner_distance=float(away),
        inner_gap=0.5 * float(task_dot(residual, to_minimum)),
        inner_curvature=float(values.min() / largest) if largest > 0 else 0.0,
        stationarity=projected_norm(problem.outer, exact, constraints),
        disagreement=math.nan if gradient is None else _relative(exact, gradient, f_u),
        undetermined=undetermined,
    )


def _flat_share(product: MatVec, slope: TaskParams, q: TaskParams, largest: float) -> float:
    """The share of F_v that is left of ``G_vv q`` and in the null space of ``G_vv``."""
    applied = product(q)
    left = {name: (slope[name] - x).detach() for name, x in applied.items()}
    size, rest = float(task_dot(slope, slope)), float(task_dot(left, left))
    if not (rest > 0 and size > _TINY**2):
        return 0.0
    bent = {name: x.detach() for name, x in product(left).items()}
    is_flat = math.sqrt(float(task_dot(bent, bent))) <= _FLAT * largest * math.sqrt(rest)
    return math.sqrt(rest / size) if is_flat else 0.0


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
    elsewhere_g, elsewhere_f = _elsewhere(problem, inner, scales) if elsewhere else (0.0, 0.0)
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
        inner_elsewhere=elsewhere_g,
        outer_elsewhere=elsewhere_f,
        inner_violation=violation,
    )


def _elsewhere(problem: Bilevel, inner: TaskParams, scales: Scales) -> tuple[float, float]:
    """How much lower than at v G is at the best of the solutions from random starts, and F at the
    best of those of equal G, relative to one plus their size."""
    generator = torch.Generator().manual_seed(0)
    g_at, f_at = _losses(problem, inner)
    g_best, f_best = g_at, f_at
    size = 1 + math.sqrt(float(task_dot(inner, inner)))
    for spread in _SPREAD:
        start = {
            name: p
            + spread * size * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
            for name, p in inner.items()
        }
        try:
            found = solved_inner(
                problem, start, _COARSE, scales=scales, optimistic=False, softness=LAST_SMOOTHING
            )
        except DivergenceError:
            continue
        if _violation(problem, found.params) <= _FEASIBLE:
            g, f = _losses(problem, found.params)
            g_best = min(g_best, g)
            if abs(g - g_at) <= _EQUAL * (1 + abs(g_at)):
                f_best = min(f_best, f)
    return (g_at - g_best) / (1 + abs(g_at)), (f_at - f_best) / (1 + abs(f_at))


@torch.no_grad()
def _losses(problem: Bilevel, inner: TaskParams) -> tuple[float, float]:
    return float(problem.inner_loss(inner)), float(problem.outer_loss(inner))


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


def reach(outer: Params, gradient: Params, constraints: Mapping[str, Constraint]) -> float:
    """How far u moves in a projected step of length ``1 + |u|``, relative to it; infinite without
    constraints."""
    size, slope = 1 + norm(outer), norm(gradient)
    if not constraints or slope == 0:
        return math.inf
    ahead = {n: p.detach() - size / slope * gradient[n].detach() for n, p in outer.items()}
    return distance(projected(ahead, constraints), outer) / size


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
