"""Curvature of the losses of T tasks at their inner parameters, measured by products with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_blo.bilevel import TaskLoss, TaskParams, task_flat, task_like
from fewshot_blo.hypergrad.gradients import hessian_products, inner_gradients
from fewshot_blo.hypergrad.linear_solve import MatVec

PRODUCTS = 30
"""Products with the Hessian that a measurement takes at most."""

_ROUNDING = 1e-6
"""Eigenvalues below this share of the largest one count as zero."""


def hessian_product(loss: TaskLoss, params: TaskParams) -> MatVec:
    """Products with the Hessian of the loss of every task at its parameters ``[T, ...]``."""
    leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
    with torch.enable_grad():
        gradient = inner_gradients(loss(leaves).sum(), leaves, create_graph=True)
    return hessian_products(gradient, leaves)


@torch.no_grad()
def ritz_values(matvec: MatVec, like: TaskParams, products: int = PRODUCTS) -> Tensor:
    """Eigenvalues of each task's matrix on a Krylov space, ascending, ``[T, products]``.

    Lanczos' method from a random vector, with full orthogonalisation. They are eigenvalues of the
    matrix once the space has the dimension of the parameters, else inside of its spectrum, the
    largest one to within a few per cent. NaN where the matrix is not finite.

    Args:
        matvec: product with the symmetric matrix.
        like: parameters ``[T, ...]``, for shapes, type and device.
        products: largest number of products.
    """
    first = next(iter(like.values()))
    tasks, dimension = task_flat(like).shape

    def apply(q: Tensor) -> Tensor:
        result = matvec(task_like(q, like))
        return task_flat({name: result[name] for name in like})

    drawn = torch.randn(1, dimension, generator=torch.Generator().manual_seed(0))
    q = drawn.to(first).expand(tasks, -1)
    q = q / q.norm(dim=1, keepdim=True)
    basis: list[Tensor] = [q]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    ended = torch.zeros(tasks, dtype=torch.bool, device=first.device)
    size = first.new_zeros(tasks)
    for _ in range(min(products, dimension)):
        r = apply(basis[-1])
        alpha = (r * basis[-1]).sum(1)
        # A task whose space is invariant repeats an eigenvalue estimate that it has.
        diagonal.append(torch.where(ended, diagonal[0], alpha) if diagonal else alpha)
        space = torch.stack(basis, 1)
        for _ in range(2):
            r = r - torch.einsum("tk,tkn->tn", torch.einsum("tkn,tn->tk", space, r), space)
        beta = r.norm(dim=1)
        size = torch.maximum(size, alpha.abs() + beta)
        ended = ended | ~(beta > 1e-6 * size)
        beside.append(torch.where(ended, 0, beta))
        basis.append(torch.where(ended[:, None], 0, r / torch.where(ended, 1, beta)[:, None]))
        if first.device.type == "cpu" and bool(ended.all()):
            break
    matrix = torch.diag_embed(torch.stack(diagonal, 1))
    if len(beside) > 1:
        off = torch.diag_embed(torch.stack(beside[:-1], 1), offset=1)
        matrix = matrix + off + off.mT
    finite = matrix.isfinite().flatten(1).all(1)[:, None]
    values = torch.linalg.eigvalsh(torch.where(finite[..., None], matrix, 0))
    return torch.where(finite, values, torch.nan)


@dataclass(frozen=True)
class Curvature:
    """How a loss is curved at the inner parameters of each task, ``[T]`` each.

    Attributes:
        smallest: smallest eigenvalue of the Hessian that was found.
        positive: smallest one that is positive beyond rounding; ``largest`` where there is none.
        largest: largest absolute value.
    """

    smallest: Tensor
    positive: Tensor
    largest: Tensor


def curvature(loss: TaskLoss, params: TaskParams) -> Curvature:
    """Measures the curvature of a loss at its parameters ``[T, ...]``."""
    values = ritz_values(hessian_product(loss, params), params)
    largest = values.abs().amax(1)
    floor = _ROUNDING * largest[:, None]
    positive = torch.where(values > floor, values, torch.inf).amin(1)
    return Curvature(values[:, 0], torch.minimum(positive, largest), largest)
