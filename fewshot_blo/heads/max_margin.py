"""A differentiable multi-class support vector machine for T tasks at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params, TaskParams
from fewshot_blo.heads.head import Start, SupportSet, logarithms
from fewshot_blo.heads.linear import ScaledLinearHead
from fewshot_blo.heads.linear_systems import solve
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, Positive

_JITTER = 1e-6


@checked
@dataclass(frozen=True)
class MaxMarginHead(ScaledLinearHead):
    """Multi-class SVM ``s W x``, differentiated through its dual problem.

    W minimises ``|W|²/2 + C Σ_i max_n (1 - [n = y_i] + w_n x_i) - w_y x_i``. It is computed from
    the dual problem and differentiated through the linear system that the dual solution satisfies.
    s is an outer variable, learned as a logarithm.

    Sources: Lee et al., "MetaOptNet" (arXiv 1904.03758), section 3.3; the classifier: Crammer &
    Singer (JMLR 2001). There 1 is added to the diagonal of the dual's matrix; here 1e-6 of its
    mean.

    Attributes:
        scale: initial s, factor of the scores, positive.
        c: C, weight of the losses against the regularisation.
        iterations: largest number of iterations of the dual solver.
    """

    scale: Positive = 10.0
    c: Positive = 1.0
    iterations: Counting = 1000

    starts: ClassVar[tuple[Start, ...]] = ("closed_form",)

    def learned(self, features: int | None) -> dict[str, Tensor]:
        """Logarithm of s."""
        del features
        return logarithms(scale=self.scale)

    def from_support(self, support: SupportSet, learned: Params) -> TaskParams:
        """``w_n = Σ_i α_in x_i``, with the solution α of the dual problem."""
        del learned
        real, targets = support.labels >= 0, support.one_hot
        x = support.features * real.unsqueeze(-1)
        kernel = x @ x.transpose(1, 2)
        mean = kernel.diagonal(dim1=1, dim2=2).sum(1).detach() / real.sum(1)
        mean = mean.clamp(min=_JITTER)
        identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        kernel = kernel + _JITTER * mean.reshape(-1, 1, 1) * identity
        present = targets.sum(1, keepdim=True) > 0
        dual = _Dual(kernel, targets, present, self.c * targets)
        with torch.no_grad():
            bound = _bounded(dual, mean, self.iterations)
        alpha, _ = _solve(dual, bound)
        return {"head.weight": alpha.transpose(1, 2) @ x}

    def loss(self, params: TaskParams, support: SupportSet, learned: Params) -> Tensor:
        """The objective that W minimises, ``[T]``, without padded rows and classes."""
        del learned
        absent, targets = support.classes < 0, support.one_hot
        weight = params["head.weight"] * ~absent.unsqueeze(2)
        scores = support.features @ weight.transpose(1, 2)
        margins = (scores + 1 - targets).masked_fill(absent.unsqueeze(1), -torch.inf)
        hinge = margins.amax(2) - (scores * targets).sum(2)
        losses = torch.where(support.labels >= 0, hinge, 0).sum(1)
        return 0.5 * weight.square().sum((1, 2)) + self.c * losses


def _bounded(dual: _Dual, mean: Tensor, iterations: int) -> Tensor:
    """Which entries of α are at their upper bound, ``[T, B, N]``, by ADMM.

    One step minimises over rows that sum to zero, the other projects onto the bounds (Boyd et al.,
    2011, section 5).
    """
    targets, present = dual.targets, dual.present
    rho = 0.3 * mean.reshape(-1, 1, 1)
    identity = torch.eye(targets.shape[1], dtype=targets.dtype, device=targets.device)
    inverse = solve(dual.kernel + rho * identity, identity.expand_as(dual.kernel))
    free = scaled = torch.zeros_like(targets)
    for number in range(iterations):
        right = (targets + rho * (free - scaled)) * present
        centred = (right - right.sum(2, keepdim=True) / present.sum(2, keepdim=True)) * present
        alpha = inverse @ centred
        before, free = free, torch.minimum(alpha + scaled, dual.upper)
        scaled = scaled + alpha - free
        # On the CPU only, which avoids a host sync on a GPU.
        if number % 50 == 49 and alpha.device.type == "cpu":
            moved = torch.stack([(alpha - free).abs().max(), (free - before).abs().max()]).max()
            if moved <= 1e-6 * dual.upper.max():
                break
    return scaled > 0


@dataclass(frozen=True)
class _Dual:
    """``min over α`` of ``<α, K α>/2 - <Y, α>`` with ``α ≤ C Y`` and rows that sum to zero.

    Attributes:
        kernel: K, ``[T, B, B]``.
        targets: Y, ``[T, B, N]``.
        present: which classes occur, ``[T, 1, N]``.
        upper: C Y.
    """

    kernel: Tensor
    targets: Tensor
    present: Tensor
    upper: Tensor


def _solve(dual: _Dual, bound: Tensor) -> tuple[Tensor, Tensor]:
    """α ``[T, B, N]`` given which entries are at their bound, and the multipliers μ ``[T, B]``.

    The free entries satisfy ``(K α - Y)_in + μ_i = 0`` and every row sums to zero: a linear system,
    which is differentiable.
    """
    kernel, targets, present = dual.kernel, dual.targets, dual.present
    tasks, rows, way = targets.shape
    # A row without a free entry, such as a padded one, makes the system singular: free one.
    own = torch.where(targets.sum(2) > 0, targets.argmax(2), present.long().argmax(2))
    stuck = (bound | ~present).all(2, keepdim=True)
    bound = bound & ~(stuck & (torch.arange(way, device=own.device) == own.unsqueeze(2)))
    fixed = torch.where(bound, dual.upper, 0)
    free = (~bound & present).to(kernel.dtype).flatten(1)
    # The unknowns: α flattened by rows, then the multipliers.
    identity = torch.eye(way, dtype=kernel.dtype, device=kernel.device)
    hessian = torch.einsum("tij,kl->tikjl", kernel, identity).reshape(tasks, rows * way, -1)
    sums = torch.eye(rows, dtype=kernel.dtype, device=kernel.device).repeat_interleave(way, 1)
    sums = sums * free.unsqueeze(1)
    left = hessian * free.unsqueeze(2) * free.unsqueeze(1) + torch.diag_embed(1 - free)
    corner = left.new_zeros(tasks, rows, rows)
    upper_half = torch.cat([left, sums.transpose(1, 2)], 2)
    system = torch.cat([upper_half, torch.cat([sums, corner], 2)], 1)
    slope = (targets - kernel @ fixed).flatten(1) * free
    right = torch.cat([slope, -fixed.sum(2)], 1)
    solution = solve(system, right.unsqueeze(2)).squeeze(2)
    entries, shift = torch.split(solution, [rows * way, rows], 1)
    return fixed + (entries * free).reshape(targets.shape), shift
