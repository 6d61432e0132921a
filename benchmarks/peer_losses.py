"""Implicit differentiation and the penalty method, written with ``higher`` for one task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from grid import Cell
from ours import CG_STEPS, LAM, MULTIPLIER, RHO, STEP_SIZE, prox
from torch import Tensor, nn

Tensors = Sequence[Tensor]
Loss = Callable[[Tensors], Tensor]


def higher(
    library: ModuleType,
    cell: Cell,
    network: nn.Sequential,
    cast: Callable[[], AbstractContextManager[Any]],
    *,
    cached: bool,
) -> Callable[[tuple[Tensor, Tensor, Tensor, Tensor]], None]:
    """Adaptation by ``higher`` without a graph, then one outer gradient by autograd.

    Args:
        library: higher.
        cell: the configuration.
        network: ``encoder`` and ``head``.
        cast: the precision of the forward passes.
        cached: compute the features once a task; otherwise the encoder runs at each step.
    """
    encoder, head = network.get_submodule("encoder"), network.get_submodule("head")
    model = head if cached else network
    adapted = list((network if cell.adapted == "all" else head).parameters())
    frozen = [] if cached or cell.adapted == "all" else list(encoder.parameters())
    optimizer = torch.optim.SGD(adapted, STEP_SIZE)
    leaves = list(network.parameters())

    def add_gradient(task: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        support_x, support_y, query_x, query_y = task
        if cached:
            with cast():
                support_x, query_x = encoder(support_x), encoder(query_x)

        with library.innerloop_ctx(model, optimizer, track_higher_grads=False) as (fast, inner):

            def losses(support_x: Tensor, query_x: Tensor, fixed: Tensors) -> tuple[Loss, Loss]:
                def inner_loss(v: Tensors) -> Tensor:
                    with cast():
                        logits = fast(support_x, params=[*fixed, *v])
                        loss = F.cross_entropy(logits, support_y)
                    distance = [p - q for p, q in zip(v, adapted, strict=True)]
                    return loss + 0.5 * prox(cell) * dot(distance, distance)

                def outer_loss(v: Tensors) -> Tensor:
                    with cast():
                        return F.cross_entropy(fast(query_x, params=[*fixed, *v]), query_y)

                return inner_loss, outer_loss

            constant = support_x.detach(), query_x.detach()
            for _ in range(cell.steps):
                fixed, v = fast.fast_params[: len(frozen)], fast.fast_params[len(frozen) :]
                inner_loss, outer_loss = losses(*constant, fixed)
                if cell.method == "penalty":
                    inner.step(_penalised(inner_loss, outer_loss, v, lam=LAM))
                else:
                    inner.step(inner_loss(v))
            v = [p.detach().requires_grad_() for p in fast.fast_params[len(frozen) :]]
            inner_loss, outer_loss = losses(support_x, query_x, frozen)
            if cell.method == "penalty":
                objective = _penalised(inner_loss, outer_loss, v, lam=0.0)
            else:
                objective = _implicit(inner_loss, outer_loss, v)
            gradients = torch.autograd.grad(objective, leaves, allow_unused=True)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            if gradient is not None:
                leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient

    return add_gradient


def _penalised(inner_loss: Loss, outer_loss: Loss, v: Tensors, *, lam: float) -> Tensor:
    """``F + <ν, G_v> + ρ/2 |G_v|² + λ G``."""
    g = inner_loss(v)
    g_v = torch.autograd.grad(g, v, create_graph=True)
    penalty = MULTIPLIER * torch.stack([p.sum() for p in g_v]).sum() + 0.5 * RHO * dot(g_v, g_v)
    return outer_loss(v) + penalty + lam * g


def _implicit(inner_loss: Loss, outer_loss: Loss, v: Tensors) -> Tensor:
    """A scalar whose gradient over the outer variables is ``F_u - G_uv G_vv^-1 F_v``."""
    f = outer_loss(v)
    f_v = torch.autograd.grad(f, v, retain_graph=True)
    g_v = torch.autograd.grad(inner_loss(v), v, create_graph=True)

    def hessian_product(w: Tensors) -> Tensors:
        return torch.autograd.grad(g_v, v, w, retain_graph=True)

    return f - dot(g_v, _conjugate_gradient(hessian_product, f_v))


def _conjugate_gradient(product: Callable[[Tensors], Tensors], b: Tensors) -> Tensors:
    q = [torch.zeros_like(p) for p in b]
    residual, direction = list(b), list(b)
    squared = dot(residual, residual)
    for _ in range(CG_STEPS):
        moved = product(direction)
        curvature = dot(direction, moved)
        if curvature <= 0:
            break
        length = squared / curvature
        q = [p + length * d for p, d in zip(q, direction, strict=True)]
        residual = [r - length * m for r, m in zip(residual, moved, strict=True)]
        new_squared = dot(residual, residual)
        ratio = new_squared / squared
        direction = [r + ratio * d for r, d in zip(residual, direction, strict=True)]
        squared = new_squared
    return q


def dot(a: Tensors, b: Tensors) -> Tensor:
    """Inner product of two lists of tensors."""
    return torch.stack([(p * q).sum() for p, q in zip(a, b, strict=True)]).sum()
