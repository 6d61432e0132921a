"""The outer optimizer where none is named: gradient descent with measured step sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_REMEMBERED = 8
"""Losses to the largest of which a new one is compared."""

_DECREASE = 1e-4
_MOST_HALVINGS = 20


class Backtracking(torch.optim.Optimizer):
    """An outer optimizer that looks at the variables after its step, and may shorten it.

    Attributes:
        for_bends: whether it is for an F that has sharp bends as a function of u.
    """

    for_bends = False

    def step(self, closure: Any = None, *, loss: float | None = None) -> bool:  # type: ignore[override]
        """Takes one step, or shortens the last one; returns whether it took one.

        Args:
            closure: not used.
            loss: of the variables as they are; None for no backtracking.
        """
        raise NotImplementedError

    @property
    def can_take_back(self) -> bool:
        """Whether there is a step to take back, and it was not shortened too often."""
        raise NotImplementedError

    @property
    def stalls(self) -> int:
        """How many steps in a row have been taken back as none of their lengths helped."""
        return 0

    def take_back(self) -> None:
        """Shortens the last step."""
        raise NotImplementedError

    def restart(self) -> None:
        """The loss is another function from here on."""
        raise NotImplementedError


class SpectralDescent(Backtracking):
    """Projected gradient descent with step sizes of Barzilai and Borwein, and backtracking.

    ``α_k = <s, s> / <s, y>`` for the last step s and the change y of the gradient over it; with
    ``y = 0`` or negative curvature, ten times the last one. The variables after a step are looked
    at in the next call: if their loss is not low enough beside the largest of the last eight, half
    of the step is taken back, and the call moves nothing else.

    Args:
        params: the variables, which may be projected onto a convex set between calls.
        first: length of the first step, relative to ``1 + |u|``.

    Source: Birgin, Martínez & Raydan, "Nonmonotone Spectral Projected Gradient Methods on Convex
    Sets" (SIAM J. Optim., 2000).
    """

    def __init__(self, params: Iterable[Tensor], first: float = 1e-2) -> None:
        own: dict[str, Any] = {"step_size": 0.0, "losses": [], "halvings": 0}
        super().__init__(params, {"first": first, **own})

    @torch.no_grad()
    def step(self, closure: Any = None, *, loss: float | None = None) -> bool:  # type: ignore[override]
        """Takes one step, or takes half of the last one back; returns whether it took one.

        Args:
            closure: not used.
            loss: of the variables as they are, infinite where there is none; None for no
                backtracking.
        """
        del closure
        (group,) = self.param_groups
        params = group["params"]
        if loss is not None and self._is_too_high(loss):
            self.take_back()
            return False
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
        norm = math.sqrt(_dot(gradients, gradients))
        size = self._step_size(params, gradients, norm)
        if loss is not None:
            group["losses"] = [*group["losses"], loss][-_REMEMBERED:]
        group["step_size"], group["halvings"] = size, 0
        for p, g in zip(params, gradients, strict=True):
            self.state[p] = {"point": p.clone(), "gradient": g.clone()}
            p.sub_(size * g)
        return True

    def restart(self) -> None:
        """The loss is another function from here on."""
        self.param_groups[0]["losses"] = []
        self.param_groups[0]["step_size"] = 0.0

    @property
    def can_take_back(self) -> bool:
        """Whether there is a step to take back, and it was not halved too often."""
        return bool(self.state) and self.param_groups[0]["halvings"] < _MOST_HALVINGS

    @torch.no_grad()
    def take_back(self) -> None:
        """Halves the last step."""
        self.param_groups[0]["halvings"] += 1
        self.param_groups[0]["step_size"] /= 2
        for p in self.param_groups[0]["params"]:
            p.lerp_(self.state[p]["point"], 0.5)

    def _is_too_high(self, loss: float) -> bool:
        (group,) = self.param_groups
        if not (group["losses"] and self.can_take_back):
            return False
        pairs = [(p - self.state[p]["point"], self.state[p]["gradient"]) for p in group["params"]]
        fall = _dot([d for d, _ in pairs], [g for _, g in pairs])
        return not loss <= max(group["losses"]) + _DECREASE * fall

    def _step_size(self, params: list[Tensor], gradients: list[Tensor], norm: float) -> float:
        last: float = self.param_groups[0]["step_size"]
        scale = 1 + math.sqrt(_dot(params, params))
        if norm == 0:
            return last
        if not last:
            return float(self.param_groups[0]["first"]) * scale / norm
        s = [p - self.state[p]["point"] for p in params]
        y = [g - self.state[p]["gradient"] for p, g in zip(params, gradients, strict=True)]
        squared, turned = _dot(s, s), _dot(s, y)
        size = squared / turned if turned > 0 and squared > 0 else 10 * last
        return min(size, scale / norm)


def _dot(a: list[Tensor], b: list[Tensor]) -> float:
    return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))
