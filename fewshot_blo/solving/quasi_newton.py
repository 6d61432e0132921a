"""The outer optimizer of few variables with exact hypergradients: BFGS within convex sets."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fewshot_blo.errors import DivergenceError
from fewshot_blo.hypergrad.interior_point import solve_constrained
from fewshot_blo.hypergrad.kkt import Constrained, solved
from fewshot_blo.solving.descent import Backtracking

MOST_VARIABLES = 200
"""Entries of u up to which a dense matrix is used."""

_DECREASE, _DAMPING = 1e-4, 0.2
_ROUNDING, _FLATTER = 1e-8, 0.9
"""Relative difference of losses that may be rounding, and the share of the slope left then."""

_SHORTEST = 1e-9
"""Length of a step relative to ``1 + |u|`` below which it is in vain."""

Functions = Callable[[Tensor], Tensor]


class QuasiNewton(Backtracking):
    """Steps ``d`` that minimise ``<g, d> + <d, B d> / 2`` within the sets, with backtracking.

    B follows the changes of the gradient by Powell's damped form of BFGS. The variables after a
    step are looked at in the next call: if their loss is not low enough, the step is shortened and
    the call moves nothing else. A step that was shortened in vain is taken back, and the next one
    starts from a new B; a second one in vain says that there is no descent.

    Args:
        params: the variables.
        equalities, inequalities: linear functions of all entries in one vector that are zero, and
            not positive, in the sets; they may be of no entry.
        first: length of the first step, relative to ``1 + |u|``.

    Source: Nocedal & Wright, "Numerical Optimization", chapter 18.
    """

    def __init__(
        self,
        params: list[Tensor],
        equalities: Functions,
        inequalities: Functions,
        first: float = 1e-2,
        *,
        for_bends: bool,
    ) -> None:
        own: dict[str, Any] = {"length": 1.0, "loss": None, "slope": 0.0, "vain": 0}
        super().__init__(params, {"first": first, **own})
        self._sets, self.for_bends = (equalities, inequalities), for_bends

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a state, in float64; PyTorch's own method gives it the type of the variables."""
        super().load_state_dict(state_dict)
        (first, *_) = self._group["params"]
        saved: dict[str, Tensor] = next(iter(state_dict["state"].values()), {})
        self.state[first] = {name: x.to(first.device) for name, x in saved.items()}

    @property
    def stalls(self) -> int:
        """How many steps in a row have been taken back as none of their lengths helped."""
        return int(self._group["vain"])

    @property
    def can_take_back(self) -> bool:
        """Whether there is a step to take back."""
        return self._group["loss"] is not None

    @property
    def _group(self) -> dict[str, Any]:
        return self.param_groups[0]

    @property
    def _own(self) -> dict[str, Tensor]:
        own: dict[str, Tensor] = self.state[self._group["params"][0]]
        return own

    def _flat(self) -> Tensor:
        return torch.cat([p.detach().double().reshape(-1) for p in self._group["params"]])

    @torch.no_grad()
    def _move_to(self, flat: Tensor) -> None:
        params = self._group["params"]
        parts = torch.split(flat, [p.numel() for p in params])
        for p, part in zip(params, parts, strict=True):
            p.copy_(part.reshape(p.shape))

    @torch.no_grad()
    def step(self, closure: Any = None, *, loss: float | None = None) -> bool:  # type: ignore[override]
        """Takes one step, or shortens the last one; returns whether it took one.

        Args:
            closure: not used.
            loss: of the variables as they are.
        """
        del closure
        group, own, u = self._group, self._own, self._flat()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in group["params"]]
        g = torch.cat([x.double().reshape(-1) for x in gradients])
        assert loss is not None
        if group["loss"] is not None:
            after = float(g @ own["direction"])
            if not self._is_low_enough(loss, after):
                self._shorten(after)
                return False
            self._learn(u - own["point"], g - own["gradient"])
            group["vain"] = 0
        else:
            self._begin(u, g)
        d = self._direction(u, g)
        group["loss"], group["slope"], group["length"] = loss, float(g @ d), 1.0
        own["point"], own["gradient"], own["direction"] = u, g, d
        self._move_to(u + d)
        return True

    def _is_low_enough(self, loss: float, after: float) -> bool:
        """By the decrease, or by the slope where losses differ by no more than rounding."""
        group = self._group
        if loss <= group["loss"] + _DECREASE * group["length"] * group["slope"]:
            return True
        equal = loss <= group["loss"] + _ROUNDING * (1 + abs(group["loss"]))
        return bool(equal) and abs(after) <= _FLATTER * abs(group["slope"])

    def take_back(self) -> None:
        """Halves the last step, or takes it back where shorter ones were in vain."""
        self._shorten(None)

    @torch.no_grad()
    def _shorten(self, after: float | None) -> None:
        """By the slopes at both ends, if known, to between a tenth and half of the length."""
        group, own = self._group, self._own
        share = 0.5
        if after is not None and after > 0 > group["slope"]:
            share = min(max(-group["slope"] / (after - group["slope"]), 0.1), 0.5)
        group["length"] *= share
        size = float(own["direction"].norm()) * group["length"]
        if size > _SHORTEST * (1 + float(own["point"].norm())):
            self._move_to(own["point"] + group["length"] * own["direction"])
            return
        self._move_to(own["point"])
        group["loss"], group["vain"] = None, group["vain"] + 1
        self._forget()

    def restart(self) -> None:
        """The loss is another function from here on."""
        self._group["loss"], self._group["vain"] = None, 0

    def _begin(self, u: Tensor, g: Tensor) -> None:
        """A first B, where there is none."""
        length = self._group["first"] * (1 + float(u.norm()))
        size = max(float(g.norm()), 1e-12) / length
        self._own.setdefault("matrix", torch.full_like(u, float(size)).diag())

    def _forget(self) -> None:
        """No B."""
        self._own.pop("matrix")

    def _learn(self, s: Tensor, y: Tensor) -> None:
        """Damped, so that B stays positive definite."""
        own = self._own
        b = own["matrix"]
        if not bool(s.any()):
            return
        bs = b @ s
        sbs, sy = float(s @ bs), float(s @ y)
        if sy < _DAMPING * sbs:
            share = (1 - _DAMPING) * sbs / (sbs - sy)
            y = share * y + (1 - share) * bs
            sy = float(s @ y)
        own["matrix"] = b - torch.outer(bs, bs) / sbs + torch.outer(y, y) / sy

    def _direction(self, u: Tensor, g: Tensor) -> Tensor:
        """At most as long as ``1 + |u|``."""
        b = self._own["matrix"]
        equal, least = self._sets
        d = solved(b, -g)
        if len(equal(u)) or bool((least(u + d) > 0).any()):
            scale = max(float(g.abs().max()), 1e-300)
            quadratic = Constrained(
                lambda x: (g @ x + 0.5 * x @ b @ x) / scale,
                lambda x: equal(u + x),
                lambda x: least(u + x),
            )
            try:
                d = solve_constrained(quadratic, torch.zeros_like(u), 1e-10).x
            except DivergenceError:
                d = -g / b.trace()
        longest = 1 + float(u.norm())
        size = float(d.norm())
        return d * min(1.0, longest / size) if math.isfinite(size) and size > 0 else -g / b.trace()
