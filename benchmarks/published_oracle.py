"""SciPy's answers to the published problems: inner minima, optimistic choice, violation.

Nothing here uses the package but for the definitions of the problems.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import qr
from scipy.optimize import Bounds, minimize
from torch import Tensor

from fewshot_blo.studies.published import PublishedProblem
from fewshot_blo.studies.published.problem import Function

Array = NDArray[np.float64]
FEASIBLE = 1e-6
"""Largest violation of a constraint that counts as none."""


@dataclass(frozen=True)
class Answer:
    """A minimum over v for one u; value inf where no feasible v was found."""

    v: Array
    value: float


def tensor(array: Array) -> Tensor:
    """Of a vector that SciPy hands over, which it may write to later."""
    return torch.tensor(array, dtype=torch.float64)


def of_v(function: Callable[[Tensor, Tensor], Tensor], u: Tensor) -> Callable[[Array], Array]:
    """A function of v alone for SciPy."""
    return lambda v: function(tensor(v), u).numpy()


def gradient_of_v(
    function: Callable[[Tensor, Tensor], Tensor], u: Tensor
) -> Callable[[Array], Array]:
    """Gradient, or Jacobian, with respect to v."""

    def differentiate(v: Array) -> Array:
        point = tensor(v).requires_grad_()
        values = function(point, u)
        if not values.requires_grad:
            return np.zeros((*values.shape, len(v)))
        rows = [
            torch.autograd.grad(value, point, retain_graph=True)[0] for value in values.reshape(-1)
        ]
        return torch.stack(rows).reshape(*values.shape, len(v)).numpy()

    return differentiate


def inner_bounds(problem: PublishedProblem, u: Tensor) -> tuple[Array, Array]:
    """Of v, infinite where there are none."""
    if problem.inner_bounds is None:
        return np.full(problem.inner_size, -inf), np.full(problem.inner_size, inf)
    lower, upper = problem.inner_bounds(u)
    return lower.numpy(), upper.numpy()


def box_excess(values: Array, lower: Array, upper: Array) -> float:
    """How far the worst entry is outside."""
    return float(max((lower - values).max(), (values - upper).max(), 0.0))


def excess(
    inequalities: Callable[[Tensor, Tensor], Tensor] | None,
    equalities: Callable[[Tensor, Tensor], Tensor] | None,
    v: Tensor,
    u: Tensor,
) -> float:
    """Largest violation of one level's inequalities and equalities."""
    largest = 0.0
    if inequalities is not None:
        largest = max(largest, float(inequalities(v, u).max()))
    if equalities is not None:
        largest = max(largest, float(equalities(v, u).abs().max()))
    return largest


def inner_excess(problem: PublishedProblem, v: Tensor, u: Tensor) -> float:
    """Largest violation of the inner constraints."""
    within = box_excess(v.numpy(), *inner_bounds(problem, u))
    return max(within, excess(problem.inner_inequalities, problem.inner_equalities, v, u))


def outer_excess(problem: PublishedProblem, v: Tensor, u: Tensor) -> float:
    """Largest violation of the outer constraints."""
    within = 0.0
    if problem.outer_bounds is not None:
        within = box_excess(u.numpy(), *(bound.numpy() for bound in problem.outer_bounds))
    return max(within, excess(problem.outer_inequalities, problem.outer_equalities, v, u))


def starts(problem: PublishedProblem, u: Tensor, count: int) -> list[Array]:
    """Starts for v: the problem's, then evenly in the bounds, or around the solution's v."""
    lower, upper = inner_bounds(problem, u)
    centre, reach = problem.solution.v.numpy(), 2 + 2 * problem.solution.v.abs().numpy()
    low = np.where(np.isfinite(lower), lower, np.minimum(centre - reach, upper - 1))
    high = np.where(np.isfinite(upper), upper, np.maximum(centre + reach, lower + 1))
    high = np.minimum(high, low + 20)
    draws = torch.quasirandom.SobolEngine(problem.inner_size, scramble=True, seed=0)
    shares = draws.draw(max(count - 1, 1), dtype=torch.float64).numpy()
    own = np.clip(problem.start.v.numpy(), lower, np.maximum(lower, upper))
    return [own, *(low + shares * (high - low))][:count]


Constraint = dict[str, object]


def constraint(kind: str, function: Callable[[Tensor, Tensor], Tensor], u: Tensor) -> Constraint:
    """As SciPy has it: inequalities are ``>= 0`` there."""
    sign = -1.0 if kind == "ineq" else 1.0
    values, jacobian = of_v(function, u), gradient_of_v(function, u)
    return {
        "type": kind,
        "fun": lambda v: sign * values(v),
        "jac": lambda v: sign * jacobian(v),
    }


def feasible_set(problem: PublishedProblem, u: Tensor) -> list[Constraint]:
    """The inner constraints, without the bounds."""
    found = []
    if problem.inner_inequalities is not None:
        found.append(constraint("ineq", problem.inner_inequalities, u))
    if problem.inner_equalities is not None:
        found.append(constraint("eq", independent(problem, problem.inner_equalities, u), u))
    return found


def independent(problem: PublishedProblem, equalities: Function, u: Tensor) -> Function:
    """Without those that follow from the others, with which SLSQP goes astray; all are affine."""
    jacobian = gradient_of_v(equalities, u)(problem.solution.v.numpy())
    triangle, order = qr(jacobian.T, mode="r", pivoting=True)
    sizes = np.abs(np.diagonal(triangle))
    kept = sorted(order[: int((sizes > 1e-9 * sizes[0]).sum())])
    return lambda v, u: equalities(v, u)[kept]


def least(
    problem: PublishedProblem,
    loss: Callable[[Tensor, Tensor], Tensor],
    u: Tensor,
    constraints: list[Constraint],
    begins: Iterable[Array],
) -> Answer:
    """The best of SLSQP's answers from several starts that keep the inner constraints."""
    lower, upper = inner_bounds(problem, u)
    best = Answer(problem.start.v.numpy(), inf)
    if (lower > upper).any():
        return best
    for begin in begins:
        result = minimize(
            of_v(loss, u),
            np.clip(begin, lower, upper),
            jac=gradient_of_v(loss, u),
            bounds=Bounds(lower, upper),
            constraints=constraints,
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 60},
        )
        value = float(result.fun)
        if value < best.value and all(
            (
                np.min(_value(held, result.x))
                if held["type"] == "ineq"
                else -np.abs(_value(held, result.x)).max()
            )
            > -FEASIBLE
            for held in constraints
        ):
            best = Answer(result.x, value)
    return best


def inner_minimum(problem: PublishedProblem, u: Tensor, count: int) -> Answer:
    """A solution of the inner problem and its G."""
    begins = starts(problem, u, count)
    return least(problem, problem.inner_loss, u, feasible_set(problem, u), begins)


def optimistic(problem: PublishedProblem, u: Tensor, count: int) -> Answer:
    """The inner solution with the least F that keeps the outer constraints, and this F."""
    inner = inner_minimum(problem, u, count)
    if inner.value == inf:
        return inner
    if problem.inner_unique:
        v = tensor(inner.v)
        kept = outer_excess(problem, v, u) <= FEASIBLE
        return Answer(inner.v, float(problem.outer_loss(v, u)) if kept else inf)
    allowed = inner.value + 1e-9 * (1 + abs(inner.value))
    constraints = [
        *feasible_set(problem, u),
        constraint("ineq", lambda v, u: (problem.inner_loss(v, u) - allowed).unsqueeze(0), u),
    ]
    if problem.outer_inequalities is not None:
        constraints.append(constraint("ineq", problem.outer_inequalities, u))
    answer = least(
        problem, problem.outer_loss, u, constraints, [inner.v, *starts(problem, u, count)]
    )
    kept = outer_excess(problem, tensor(answer.v), u) <= FEASIBLE
    return answer if kept else Answer(answer.v, inf)


def _value(constraint: Mapping[str, Any], x: Any) -> Any:
    """Of a constraint in SciPy's form."""
    return constraint["fun"](x)
