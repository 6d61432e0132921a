"""Gradients of the losses, and the sum of the parts of a hypergradient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, OuterStep, Params, TaskParams, sum_tensors, task_dot
from fewshot_blo.errors import StructuralZeroError
from fewshot_blo.hypergrad.systems import MatVec

IN_NO_LOSS = "add a proximal term (Initialization: prox > 0), make it part of a loss, or use Unroll"
"""Remedy for an outer variable in neither loss, for strategies that differentiate the losses."""


def outer_gradients(output: Tensor, outer: Params) -> dict[str, Tensor | None]:
    """Gradient of a scalar with respect to the outer variables; None for those not in its graph."""
    if not output.requires_grad:
        return dict.fromkeys(outer)
    gradients = torch.autograd.grad(output, list(outer.values()), allow_unused=True)
    return dict(zip(outer, gradients, strict=True))


def inner_gradients(output: Tensor, inner: TaskParams, *, create_graph: bool = False) -> TaskParams:
    """Gradient of a scalar with respect to the inner parameters; zero for those not in its graph.

    The graph is retained for further gradients.
    """
    if not output.requires_grad:
        return {name: torch.zeros_like(p) for name, p in inner.items()}
    gradients = torch.autograd.grad(
        output,
        list(inner.values()),
        create_graph=create_graph,
        retain_graph=True,
        materialize_grads=True,
    )
    if not create_graph:
        # Zeros in place of absent gradients require grad in older versions of PyTorch.
        gradients = tuple(g.detach() for g in gradients)
    return dict(zip(inner, gradients, strict=True))


def hessian_products(g_v: TaskParams, inner: TaskParams) -> MatVec:
    """Products with the Hessian of every task's loss, whose gradient ``g_v`` has a graph."""

    def product(x: TaskParams) -> TaskParams:
        with torch.enable_grad():
            return inner_gradients(task_dot(g_v, x).sum(), inner)

    return product


def both_gradients(
    objective: Tensor, inner: TaskParams, outer: Params
) -> tuple[TaskParams, dict[str, Tensor | None]]:
    """Each task's gradient over its inner parameters, and the mean's over the outer variables.

    One backward pass of the sum over tasks gives both: row t of an inner gradient is that of task
    t, and outer gradients are divided by T.

    Args:
        objective: one value a task, ``[T]``.
        inner: inner parameters, ``[T, ...]``; the gradient of those not in the graph is zero.
        outer: outer variables; the gradient of those not in the graph is None.
    """
    if not objective.requires_grad:
        return {name: torch.zeros_like(p) for name, p in inner.items()}, dict.fromkeys(outer)
    leaves = [*inner.values(), *outer.values()]
    gradients = torch.autograd.grad(objective.sum(), leaves, allow_unused=True)
    over_inner, over_outer = gradients[: len(inner)], gradients[len(inner) :]
    return (
        {
            name: torch.zeros_like(p) if g is None else g
            for (name, p), g in zip(inner.items(), over_inner, strict=True)
        },
        {
            name: None if g is None else g / objective.numel()
            for name, g in zip(outer, over_outer, strict=True)
        },
    )


def add_gradients(
    outer: Params, parts: Iterable[Mapping[str, Tensor | None]], *, method: str, remedy: str
) -> dict[str, Tensor]:
    """Sums the parts of a hypergradient.

    Raises:
        StructuralZeroError: if an outer variable is in none of the parts, so that its
            hypergradient is identically zero.
    """
    parts = list(parts)
    total: dict[str, Tensor] = {}
    for name, leaf in outer.items():
        present = [gradient for part in parts if (gradient := part[name]) is not None]
        if not present:
            raise StructuralZeroError(
                f"{method}: outer variable '{name}' ({list(leaf.shape)}) is in neither the inner "
                f"nor the outer loss, so its hypergradient is identically zero: {remedy}"
            )
        total[name] = sum_tensors(present)
    return total


def value_gap_step(
    problem: Bilevel, v: TaskParams, z: TaskParams, weight: Tensor, *, method: str
) -> OuterStep:
    """``du = mean_t F_u(v) + λ (G_u(v) - G_u(z))`` at constant v and z.

    Args:
        v: inner parameters reached, ``[T, ...]``.
        z: minimisers of G, ``[T, ...]``.
        weight: λ, a scalar or ``[T]``.
        method: name of the strategy, for the error about an outer variable in no loss.
    """
    v = {name: p.detach().requires_grad_() for name, p in v.items()}
    f, g = problem.outer_loss(v), problem.inner_loss(v)
    penalised = f + weight * (g - problem.inner_loss(z))
    over_outer = outer_gradients(penalised.mean(), problem.outer)
    gradient = add_gradients(problem.outer, [over_outer], method=method, remedy=IN_NO_LOSS)
    inner = {name: p.detach() for name, p in v.items()}
    return OuterStep(gradient, inner, f.detach(), g.detach())
