"""The outer optimizer of many variables with exact hypergradients: L-BFGS."""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot_blo.kernel.lbfgs import quasi_newton_step
from fewshot_blo.solving.quasi_newton import QuasiNewton

MOST_VARIABLES = 1_000_000
"""Entries of u up to which so many copies of them are kept."""

_MEMORY = 20
_CURVED = 1e-8
"""Cosine of a step and the change of gradient over it from which on F is convex along it."""


class LimitedMemory(QuasiNewton):
    """Steps ``-H g`` with H from the last 20 steps, and backtracking.

    Args:
        params: the variables, which are in no sets.
        first: length of the first step, relative to ``1 + |u|``.

    Source: as of ``fewshot_blo.kernel.lbfgs``.
    """

    def __init__(self, params: list[Tensor], first: float = 1e-2) -> None:
        super().__init__(params, _nothing, _nothing, first, for_bends=False)

    def _begin(self, u: Tensor, g: Tensor) -> None:
        del g
        for name in ("steps", "turns"):
            self._own.setdefault(name, u.new_zeros(1, _MEMORY, len(u)))

    def _forget(self) -> None:
        for name in ("steps", "turns"):
            self._own.pop(name)

    def _learn(self, s: Tensor, y: Tensor) -> None:
        if float(s @ y) > _CURVED * float(s.norm() * y.norm()):
            for name, last in (("steps", s), ("turns", y)):
                self._own[name] = torch.cat([self._own[name][:, 1:], last[None, None]], 1)

    def _direction(self, u: Tensor, g: Tensor) -> Tensor:
        """At most as long as ``1 + |u|``."""
        longest = 1 + float(u.norm())
        new, falls = quasi_newton_step(self._own["steps"], self._own["turns"], g[None])
        d = new[0]
        if not bool(falls):
            d = -g * self._group["first"] * longest / max(float(g.norm()), 1e-300)
        return d * min(1.0, longest / max(float(d.norm()), 1e-300))


def _nothing(u: Tensor) -> Tensor:
    return u[:0]
