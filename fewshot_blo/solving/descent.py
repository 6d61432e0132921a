"""The outer optimizer where none is named: gradient descent with measured step sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class AdaptiveDescent(torch.optim.Optimizer):
    """Gradient descent on all variables with one step size, from the curvature that it meets.

    ``α_k = min(sqrt(1 + α_{k-1} / α_{k-2}) α_{k-1}, |u_k - u_{k-1}| / (2 |g_k - g_{k-1}|))``, where
    u_k is what a projection made of the last step. ``distance`` is an estimate of the distance to
    a stationary point, ``|g_k| |u_k - u_{k-1}| / |g_k - g_{k-1}|``.

    Args:
        params: the variables.
        first: length of the first step, relative to ``1 + |u|``.

    Source: Malitsky & Mishchenko (arXiv 1910.09529), algorithm 1.
    """

    def __init__(self, params: Iterable[Tensor], first: float = 1e-3) -> None:
        unknown: dict[str, Any] = {"step_size": 0.0, "ratio": math.inf, "distance": math.inf}
        super().__init__(params, {"first": first, **unknown})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Takes one step."""
        del closure
        (group,) = self.param_groups
        params = [p for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in params]
        norm = _norm(gradients)
        if norm == 0:
            group["distance"] = 0.0
            return
        last, ratio = group["step_size"], group["ratio"]
        if not last:
            size = group["first"] * (1 + _norm(params)) / norm
            ratio = math.inf
        else:
            moved = _norm([p - self.state[p]["point"] for p in params])
            turned = _norm(
                [g - self.state[p]["gradient"] for p, g in zip(params, gradients, strict=True)]
            )
            met = moved > 0 and turned > 0
            by_curvature = moved / (2 * turned) if met else math.inf
            group["distance"] = norm * moved / turned if met else math.inf
            size = min(math.sqrt(1 + ratio) * last, by_curvature)
            if math.isinf(size):  # No curvature yet: the first step was any short one.
                size = 10 * last
            else:
                ratio = size / last
        group["step_size"], group["ratio"] = size, ratio
        for p, g in zip(params, gradients, strict=True):
            self.state[p] = {"point": p.clone(), "gradient": g.clone()}
            p.sub_(size * g)


def _norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(x.double().square().sum()) for x in tensors))
