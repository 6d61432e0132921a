"""Whether outer steps converge or diverge, from the steps themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewshot_blo.bilevel import OuterStep, Params
from fewshot_blo.errors import DivergenceError
from fewshot_blo.solving.certify import projected_norm, reach
from fewshot_blo.solving.constraints import Constraint
from fewshot_blo.solving.points import copies, distance, norm

_BEYOND = 1e10
"""Growth of a loss, relative to the first one, that is divergence."""

_UNBOUNDED = (
    "the inner loss is not finite where steps to its minimiser led, though their size was chosen "
    "by its curvature: it has no minimum (it falls without bound), or is not finite near its start "
    "for these outer variables; add an l2 term, or set constraints of u or v"
)

_UNDEFINED = (
    "the outer loss is {}, though the inner loss is finite at the same inner parameters: it is not "
    "defined there, or overflows; start at other outer variables, or set constraints of u or v"
)

_FALLS = (
    "there is no minimum on the way of u, or outer constraints do not keep it from there; start "
    "elsewhere, or set constraints"
)
_LONG_STEPS = "lower the inner step size or the learning rate, or leave both unset"

SHORT_STEPS = 3
"""Consecutive short steps at which convergence is worth a measurement."""


@dataclass
class Watch:
    """What the last steps say.

    Attributes:
        tolerance: length of an outer step, relative to ``1 + |u|``, that is short; None for none.
        first: losses of the first step, by name.
        short: consecutive short steps.
        point, gradient: u and the hypergradient there, of the last step; empty before.
        near: consecutive steps at a ``distance`` below the tolerance.
        distance: estimated distance of u to a stationary point relative to ``1 + |u|``, by the
            curvature that the last step met.
        coarseness: of the approximation at hand, a hundredth of which is a short step, too.
    """

    tolerance: float | None
    first: dict[str, float] = field(default_factory=dict)
    short: int = 0
    point: dict[str, Tensor] = field(default_factory=dict)
    gradient: dict[str, Tensor] = field(default_factory=dict)
    near: int = 0
    distance: float = math.inf
    coarseness: float = 0.0

    def check(self, step: OuterStep, number: int, method: str, *, chosen: bool) -> None:
        """Raises DivergenceError where a loss is not finite, or has grown beyond all bounds.

        Args:
            step: the step.
            number: its number, from 1.
            method: the strategy's name.
            chosen: whether number and size of the inner steps were left open.
        """
        try:
            step.check_finite(method)
        except DivergenceError as error:
            why = (chosen and _where_not_finite(step)) or str(error)
            raise DivergenceError(f"outer step {number}: {why}") from error
        for name, loss in (("outer", step.outer_loss), ("inner", step.inner_loss)):
            size = float(loss.detach().abs().max())
            first = self.first.setdefault(name, size)
            if size > _BEYOND * max(1.0, first):
                raise DivergenceError(
                    f"outer step {number}: {method}: the {name} loss is {size:.3g} and was "
                    f"{first:.3g} at the first step: {_FALLS if chosen else _LONG_STEPS}"
                )

    def before(self, outer: Params, gradient: Params, sets: Mapping[str, Constraint]) -> None:
        """Takes in u and its hypergradient, before the step from there.

        Args:
            outer: u.
            gradient: the hypergradient.
            sets: of outer variables, by name.
        """
        point, new = copies(outer), copies(gradient)
        slope = projected_norm(outer, gradient, sets)
        if self.point:
            moved, turned = distance(point, self.point), distance(new, self.gradient)
            if turned > 0:
                self.distance = slope * moved / turned / (1 + norm(point))
        # Where F has no curvature, as at a corner of the sets, they alone tell the distance.
        self.distance = 0.0 if slope == 0 else min(self.distance, reach(outer, gradient, sets))
        if self.tolerance is not None:
            self.near = self.near + 1 if self.distance <= self.tolerance else 0
        self.point, self.gradient = point, new

    def after(self, outer: Params, number: int) -> None:
        """Takes in u after the step.

        Raises:
            DivergenceError: if it is not finite.
        """
        size = norm(outer)
        if not math.isfinite(size):
            raise DivergenceError(
                f"outer step {number}: the outer variables are not finite after a step of the "
                "outer optimizer: lower its learning rate"
            )
        if self.tolerance is not None:
            limit = max(self.tolerance, 1e-2 * self.coarseness)
            is_short = distance(outer, self.point) <= limit * (1 + size)
            self.short = self.short + 1 if is_short else 0

    def start_anew(self) -> None:
        """F is another function from here on."""
        self.point, self.gradient, self.distance = {}, {}, math.inf
        self.short = self.near = 0

    def plain(self) -> dict[str, Any]:
        """For a checkpoint."""
        kept = ("first", "short", "point", "gradient", "near", "distance")
        return {name: getattr(self, name) for name in kept}

    def restore(self, plain: Mapping[str, Any], device: torch.device) -> None:
        """Takes up what ``plain`` returned."""
        for name, value in plain.items():
            setattr(self, name, value)
        self.point = {name: p.to(device) for name, p in self.point.items()}
        self.gradient = {name: p.to(device) for name, p in self.gradient.items()}


def _where_not_finite(step: OuterStep) -> str:
    """What a loss that is not finite says where inner steps are chosen; empty if both are."""
    # Steps down a loss without a minimum may end where it is still finite.
    if not (step.inner_loss.abs() <= _BEYOND).all():
        return _UNBOUNDED
    outer = step.outer_loss[~step.outer_loss.isfinite()]
    return _UNDEFINED.format(float(outer[0])) if outer.numel() else ""
