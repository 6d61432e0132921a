"""How the curvatures of the two losses compare, from which weights between them are chosen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, TaskParams, task_dot
from fewshot_blo.hypergrad.curvature import curvature
from fewshot_blo.hypergrad.gradients import inner_gradients


@dataclass(frozen=True)
class Balance:
    """The largest curvature of F over curvatures of G at the initial inner parameters, ``[T]``.

    Attributes:
        largest: over the largest curvature of G.
        positive: over the smallest positive one.
        product: over the product of both.
        convex: whether G has no negative curvature there.
    """

    largest: Tensor
    positive: Tensor
    product: Tensor
    convex: Tensor


def balance(problem: Bilevel) -> Balance:
    """Measures both losses; a linear F counts as one that is curved over its own scale."""
    start = {name: p.detach() for name, p in problem.inner_init.items()}
    of_g, of_f = curvature(problem.inner_loss, start), curvature(problem.outer_loss, start)
    f_size = torch.maximum(
        of_f.largest, _slope(problem, start) / (1 + task_dot(start, start).sqrt())
    )
    return Balance(
        f_size / of_g.largest,
        f_size / of_g.positive,
        f_size / (of_g.largest * of_g.positive),
        of_g.smallest >= -1e-6 * of_g.largest,
    )


def _slope(problem: Bilevel, start: TaskParams) -> Tensor:
    leaves = {name: p.detach().requires_grad_() for name, p in start.items()}
    with torch.enable_grad():
        gradient = inner_gradients(problem.outer_loss(leaves).sum(), leaves)
    return task_dot(gradient, gradient).sqrt()
