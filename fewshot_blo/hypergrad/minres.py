"""MINRES: symmetric systems whose matrix may be indefinite or singular."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_blo.bilevel import TaskParams, task_dot
from fewshot_blo.hypergrad.systems import MatVec, add_scaled, damped
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, NonNegative


@checked
@dataclass(frozen=True)
class MINRES:
    """The least residual over the Krylov space; H + damping I need not be positive definite.

    Where H is singular and b in its range, q is the solution without a part in the null space.
    Where b is not in the range, the residual is the least there is, and q may have such a part:
    use damping.

    A task stops moving once its residual r is below ``tolerance`` times its right-hand side, or
    ``H r`` below ``tolerance`` times ``|H| |r|``, which a least residual fulfils.

    Attributes:
        steps: largest number of steps, each a product with H.
        damping: added to the diagonal of H.
        tolerance: relative residual at which a task stops; at least 4 roundings of the type.

    Source: Paige & Saunders, "Solution of sparse indefinite systems of linear equations" (1975).
    """

    steps: Counting = 20
    damping: NonNegative = 0.0
    tolerance: NonNegative = 1e-10

    def __call__(self, matvec: MatVec, b: TaskParams) -> TaskParams:
        """Solves from a zero start.

        The Lanczos process makes H tridiagonal on the basis ``v_1, v_2, ...``; rotations with
        cosines c and sines s make that triangular, so that q moves along one w a step by a length
        that is never changed again. ``left`` is the signed norm of the residual, ``[T]``.
        """
        nothing = {name: torch.zeros_like(x) for name, x in b.items()}
        left = task_dot(b, b).sqrt()
        # What is left below rounding has no direction, and steps along it would add noise to q.
        tolerance = max(self.tolerance, 4 * torch.finfo(left.dtype).eps)
        target = left * tolerance
        moving = ~(left <= target)  # True for NaN, which then reaches q and is noticed.
        q, v_old, w_old, w = nothing, nothing, nothing, nothing
        beta, scale = left, torch.zeros_like(left)
        v = _divided(b, beta, moving)
        c_old, c, s_old, s = _ones(left), _ones(left), 0 * _ones(left), 0 * _ones(left)
        for number in range(self.steps):
            # On a GPU this test would be a host sync; further steps leave a solved task as it is.
            if left.device.type == "cpu" and not moving.any():
                break
            product = damped(matvec, v, self.damping)
            alpha = task_dot(v, product)
            following = add_scaled(product, -alpha, v)
            if number:
                following = add_scaled(following, -beta, v_old)
            else:
                beta = torch.zeros_like(beta)
            beta_new = task_dot(following, following).sqrt()
            # The new column of the tridiagonal matrix under the last two rotations.
            diagonal, above, two_above = c * alpha - c_old * s * beta, s * alpha, s_old * beta
            above = above + c_old * c * beta
            pivot = (diagonal**2 + beta_new**2).sqrt()
            scale = torch.maximum(scale, (alpha**2 + beta**2 + beta_new**2).sqrt())
            # |H r| / |r| of the residual before this step.
            slope = (diagonal**2 + (c * beta_new) ** 2).sqrt()
            moving = moving & ~(slope <= tolerance * scale)
            direction = add_scaled(add_scaled(v, -two_above, w_old), -above, w)
            w_old, w = w, _divided(direction, pivot, moving)
            safe = torch.where(moving, pivot, 1)
            c_old, c, s_old, s = c, diagonal / safe, s, beta_new / safe
            q = add_scaled(q, torch.where(moving, c * left, 0), w)
            left = torch.where(moving, -s * left, left)
            moving = moving & ~(left.abs() <= target)
            v_old, v, beta = v, _divided(following, beta_new, moving), beta_new
        return q


def _ones(like: Tensor) -> Tensor:
    return torch.ones_like(like)


def _divided(x: TaskParams, by: Tensor, moving: Tensor) -> TaskParams:
    """x over a scalar of each task that moves, and zero for the others, ``[T, ...]``."""
    factor = torch.where(moving, 1 / torch.where(moving, by, 1), 0)
    return add_scaled({name: torch.zeros_like(p) for name, p in x.items()}, factor, x)
