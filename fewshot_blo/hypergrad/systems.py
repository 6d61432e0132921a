"""What linear solvers for T independent symmetric systems ``H_t q_t = b_t`` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from fewshot_blo.bilevel import TaskParams

MatVec = Callable[[TaskParams], TaskParams]


class LinearSolver(Protocol):
    """Approximates ``H^-1 b`` for every task."""

    def __call__(self, matvec: MatVec, b: TaskParams) -> TaskParams:
        """The approximate solutions, ``[T, ...]``."""
        ...


def damped(matvec: MatVec, v: TaskParams, damping: float) -> TaskParams:
    """``(H + damping I) v``."""
    product = matvec(v)
    if damping == 0:
        return product
    return {name: p + damping * v[name] for name, p in product.items()}


def add_scaled(a: TaskParams, scale: Tensor, b: TaskParams) -> TaskParams:
    """``a + scale_t b`` with one scale a task, ``[T]``."""
    return {name: v + scale.reshape([-1] + [1] * (v.ndim - 1)) * b[name] for name, v in a.items()}
