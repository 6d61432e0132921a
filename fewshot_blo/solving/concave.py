"""Whether F falls along directions in which it is concave at a solution, as on a plateau."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, OuterStep, Params, TaskParams, task_flat, task_like
from fewshot_blo.errors import DivergenceError
from fewshot_blo.solving.constraints import Constraint
from fewshot_blo.solving.look_ahead import exact_step
from fewshot_blo.solving.points import copies, move, norm, projected
from fewshot_blo.solving.problem import unstacked

MOST_VARIABLES = 50
"""Entries of u up to which all second derivatives of F are measured."""

_PRODUCTS = 16
"""Steps of Lanczos' method for more entries, each with one product with the second derivatives."""

_LENGTH, _LENGTHS = 1e-3, (1.0, 3.0, 10.0)
"""Of steps to measure the second derivatives, and of those downhill, relative to ``1 + |u|``."""

_CONCAVE, _MOST = 1e-10, 10
"""Negative curvature, relative to the largest, that counts, and the most directions of it."""

_EXHAUSTED = 1e-6
"""Share of a product that is new, below which it is the error of the differences."""

_LOWER = 1e-4
"""By how much F, relative to ``1 + |F|``, has to be lower."""


def lower_along_concave(
    problem: Bilevel, inner: TaskParams, sets: Mapping[str, Constraint]
) -> dict[str, Tensor] | None:
    """Outer variables with a lower F along directions of negative curvature; None if none is found.

    Where a gradient is zero to rounding, as on a plateau, curvature may still tell the way down.
    The outer variables are as before in the end.

    Args:
        problem: of one task, without constraints of the inner problem, with u at the solution.
        inner: v of the solution, ``[1, ...]``.
        sets: of outer variables, by name.
    """
    here = copies(problem.outer)
    try:
        first = exact_step(problem, inner)
        best, lowest, limit = here, _loss(first), _LOWER * (1 + abs(_loss(first)))
        for direction in _concave_directions(problem, first, here):
            start = best
            for length in (sign * x for x in _LENGTHS for sign in (1, -1)):
                size = length * (1 + norm(here))
                u = projected({n: p + size * direction[n] for n, p in start.items()}, sets)
                move(problem.outer, u)
                try:
                    loss = _loss(exact_step(problem, first.inner))
                except DivergenceError:
                    continue
                if loss < lowest - limit:
                    best, lowest = u, loss
        return None if best is here else best
    except DivergenceError:
        return None
    finally:
        move(problem.outer, here)


def _loss(step: OuterStep) -> float:
    return float(step.outer_loss.detach().mean())


def _concave_directions(
    problem: Bilevel, first: OuterStep, here: Params
) -> list[dict[str, Tensor]]:
    """Unit vectors, of the most negative curvature first."""

    def flat(parts: Params) -> Tensor:
        return task_flat({name: p.detach()[None] for name, p in parts.items()})[0].double()

    def named(x: Tensor) -> dict[str, Tensor]:
        return unstacked(task_like(x[None], {name: p[None] for name, p in here.items()}))

    u, slope = flat(here), flat(first.gradient)

    def product(way: Tensor, length: float) -> Tensor:
        move(problem.outer, named(u + length * way))
        return (flat(exact_step(problem, first.inner).gradient) - slope) / length

    if len(u) <= MOST_VARIABLES:
        lengths = [_LENGTH * (1 + abs(x)) for x in u.tolist()]
        units = torch.eye(len(u)).to(u)
        matrix = torch.stack([product(way, x) for way, x in zip(units, lengths, strict=True)])
        values, axes = torch.linalg.eigh(0.5 * (matrix + matrix.T))
    else:
        length = _LENGTH * (1 + float(u.norm()))
        values, axes = _lanczos(lambda way: product(way, length), u)
    concave = values < -_CONCAVE * values.abs().max()
    return [named(axis) for axis in axes.T[concave][:_MOST]]


def _lanczos(product: Callable[[Tensor], Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    """Ritz values in ascending order, and their unit vectors in columns, of a random start."""
    generator = torch.Generator().manual_seed(0)
    way = torch.randn(len(like), generator=generator, dtype=torch.float64).to(like)
    basis = (way / way.norm())[None]
    products: list[Tensor] = []
    while len(products) < _PRODUCTS:
        products.append(product(basis[-1]))
        rest = products[-1]
        for _ in range(2):  # Once is not orthogonal to rounding.
            rest = rest - basis.T @ (basis @ rest)
        if not rest.norm() > _EXHAUSTED * products[-1].norm():
            break
        basis = torch.cat([basis, (rest / rest.norm())[None]])
    basis = basis[: len(products)]
    small = basis @ torch.stack(products).T
    values, axes = torch.linalg.eigh(0.5 * (small + small.T))
    return values, basis.T @ axes
