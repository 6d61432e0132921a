"""Dense linear systems of T tasks, solved without a host sync."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewshot_blo.kernel.function import Function


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """``X_t = A_t^-1 B_t``, ``[T, B, N]``; NaN for a task whose matrix is singular.

    ``torch.linalg.solve`` checks on the host whether a matrix is singular, and so do the second
    derivatives of ``torch.linalg.solve_ex``. On a GPU this is a host sync, which a CUDA graph
    cannot capture. Here there is none, in derivatives of any order.

    Args:
        matrix: A, ``[T, B, B]``.
        right: B, ``[T, B, N]``.
    """
    factors, pivots, info = torch.linalg.lu_factor_ex(matrix.detach())
    solution: Tensor = _Solution.apply(matrix, right, factors, pivots, info == 0, False)
    return solution


class _Solution(Function):
    """``A^-1 B`` or, if transposed, ``A'^-1 B``, from the LU factors of A.

    The cotangents of ``A X = B`` are ``dB = A'^-1 dX`` and ``dA = -dB X'``; transposed, ``dA = -X
    dB'``. They use the same function, so it can be differentiated any number of times.
    """

    @staticmethod
    def forward(
        ctx: Any,
        matrix: Tensor,
        right: Tensor,
        factors: Tensor,
        pivots: Tensor,
        regular: Tensor,
        transposed: bool,
    ) -> Tensor:
        x = torch.linalg.lu_solve(factors, pivots, right, adjoint=transposed)
        x = torch.where(regular[:, None, None], x, torch.nan)
        ctx.save_for_backward(matrix, x, factors, pivots, regular)
        ctx.transposed = transposed
        return x

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        matrix, x, factors, pivots, regular = ctx.saved_tensors
        of_right = _Solution.apply(
            matrix, cotangents[0], factors, pivots, regular, not ctx.transposed
        )
        left, right = (x, of_right) if ctx.transposed else (of_right, x)
        of_matrix = -left @ right.transpose(1, 2) if ctx.needs_input_grad[0] else None
        return of_matrix, of_right, None, None, None, None
