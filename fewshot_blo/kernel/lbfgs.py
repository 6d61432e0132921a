"""The update rule of inner problems that are solved to a tolerance: L-BFGS, by gradients alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_blo.bilevel import Params, TaskParams, task_flat, task_like
from fewshot_blo.kernel.rules import TENTATIVE, RuleState
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, Positive

_OVERSHOT = 0.5
"""Slope at the end of a step, relative to that at its start, from which on it was too long."""

_VAIN = 1e-4
"""Share of a step that is left after so many shortenings that its direction is given up."""

_LONGEST, _GROWTH = 10.0, 10.0
"""Of a step relative to ``1 + |v|``, and to the last one where no curvature was met."""

_FEW = 100
"""Entries of v up to which as many steps are kept as this: H is then nearly that of BFGS."""

_CURVED = 1e-12
"""Cosine of the angle between a step and the change of gradient below which there is none."""


@checked
@dataclass(frozen=True)
class LBFGS:
    """Quasi-Newton steps ``v ← v - H g``, H from the last steps and changes of the gradient.

    Each task has its own H, all products of which are batched. A step that has gone too far, by
    the slope at its end, is shortened from where it began; losses are not looked at, so that steps
    are exact down to the rounding of gradients. Computed in float64. It has no derivatives, and
    projections do not suit it.

    Attributes:
        first: length of the first step, relative to ``1 + |v|``.
        memory: number of last steps that are kept for more than 100 entries.

    Source: Nocedal, "Updating Quasi-Newton Matrices with Limited Storage" (Math. Comp., 1980), in
    the form of Byrd, Nocedal & Schnabel, "Representations of Quasi-Newton Matrices" (1994),
    theorem 2.2.
    """

    first: Positive = 1e-4
    memory: Counting = 20

    def init(self, params: TaskParams, outer: Params) -> RuleState:
        """No step was taken."""
        del params, outer
        return {}

    @torch.no_grad()
    def update(
        self, gradients: TaskParams, state: RuleState, params: TaskParams, step: int
    ) -> tuple[TaskParams, RuleState]:
        """One step, or for tasks whose last one went too far a shorter one in its place."""
        del step
        v, g = task_flat(params).double(), task_flat(gradients).double()
        if not state:
            tasks, entries = v.shape
            empty = v.new_zeros(tasks, _FEW if entries <= _FEW else self.memory, entries)
            length = self.first * (1 + v.norm(dim=1))
            history = {"steps": empty, "turns": empty}
            tentative = torch.ones(tasks, dtype=torch.bool, device=v.device)
            return self._from(params, v, g, _along(g, length), history, length[:, None], tentative)
        last = state["last"]
        d = last["direction"]
        slope, before = (g * d).sum(1), (last["gradient"] * d).sum(1)
        by_h = state["history"]["steps"][:, -1].any(1)
        # A step into the unknown must not pass a minimum: slopes behind it may be small again.
        too_far = ~(slope <= torch.where(by_h, -_OVERSHOT * before, 0))
        history = self._learned(state["history"], v - last["point"], g - last["gradient"], too_far)
        new = _bounded(self._direction(history, g, v - last["point"]), v)
        share = (before / (before - slope)).nan_to_num(0.1).clamp(0.1, 0.7)
        point = torch.where(too_far[:, None], last["point"], v)
        gradient = torch.where(too_far[:, None], last["gradient"], g)
        shorter = share[:, None] * d
        length = shorter.norm(dim=1)
        # No way down along -H g, as at a kink of the loss: once more along -g, from a new H.
        known = history["steps"][:, -1].any(1)
        in_vain = (too_far & known & (length < _VAIN * last["whole"][:, 0]))[:, None]
        history = {name: torch.where(in_vain[..., None], 0, x) for name, x in history.items()}
        shorter = torch.where(in_vain, _along(gradient, length), shorter)
        direction = torch.where(too_far[:, None], shorter, new)
        whole = torch.where(
            too_far[:, None] & ~in_vain, last["whole"], direction.norm(dim=1)[:, None]
        )
        tentative = state[TENTATIVE][""] & ~known
        return self._from(params, point, gradient, direction, history, whole, tentative)

    @staticmethod
    def _from(
        params: TaskParams,
        point: Tensor,
        gradient: Tensor,
        direction: Tensor,
        history: TaskParams,
        whole: Tensor,
        tentative: Tensor,
    ) -> tuple[TaskParams, RuleState]:
        """The parameters at the end of a step, and the state; ``whole`` is its length at first."""
        last = {"point": point, "gradient": gradient, "direction": direction, "whole": whole}
        state = {"last": last, "history": dict(history), TENTATIVE: {"": tentative}}
        return task_like(point + direction, params), state

    @staticmethod
    def _learned(history: TaskParams, s: Tensor, y: Tensor, too_far: Tensor) -> dict[str, Tensor]:
        """With the last step, and without all steps where the loss was not convex along it."""
        curved = (s * y).sum(1) > _CURVED * s.norm(dim=1) * y.norm(dim=1)
        new = {}
        for name, last in (("steps", s), ("turns", y)):
            old = history[name]
            joined = torch.cat([old[:, 1:], last[:, None]], 1)
            joined = torch.where(curved[:, None, None], joined, 0)
            new[name] = torch.where(too_far[:, None, None], old, joined)
        return new

    @staticmethod
    def _direction(history: TaskParams, g: Tensor, s: Tensor) -> Tensor:
        """``-H g``, or along -g and longer than the last step s where nothing is known of H."""
        new, falls = quasi_newton_step(history["steps"], history["turns"], g)
        return torch.where(falls[:, None], new, _along(g, _GROWTH * s.norm(dim=1)))


def quasi_newton_step(steps: Tensor, turns: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """``-H g``, ``[T, n]``, and whether it leads downhill, ``[T]``; not where H is unknown.

    With the steps S, the turns Y and ``R = triu(S'Y)``, D the diagonal of R, theorem 2.2 has
    ``H = γ + S R^-T (D + γ Y'Y) R^-1 S' - γ S R^-T Y' - γ Y R^-1 S'``.

    Args:
        steps: S, the last one last, ``[T, m, n]``; zero where there are fewer than m.
        turns: Y, the changes of the gradient over them, likewise.
        g: gradients, ``[T, n]``.
    """
    inner = steps @ turns.mT
    d = inner.diagonal(dim1=1, dim2=2)
    known = d[:, -1] > 0
    r = inner.triu() + torch.diag_embed((d == 0).to(d))
    bent = turns @ turns.mT
    gamma = (d[:, -1] / torch.where(known, bent[:, -1, -1], 1))[:, None]
    a, b = (m @ g[..., None] for m in (steps, turns))
    w = torch.linalg.solve_triangular(r, a, upper=True)
    p = d[..., None] * w + gamma[..., None] * (bent @ w - b)
    z = torch.linalg.solve_triangular(r.mT, p, upper=False)
    new = -gamma * g - (steps.mT @ z)[..., 0] + gamma * (turns.mT @ w)[..., 0]
    return new, known & ((new * g).sum(1) < 0)


def _along(g: Tensor, length: Tensor) -> Tensor:
    """Downhill."""
    size = g.norm(dim=1)
    return -g * (length / torch.where(size > 0, size, 1))[:, None]


def _bounded(direction: Tensor, v: Tensor) -> Tensor:
    longest, size = _LONGEST * (1 + v.norm(dim=1)), direction.norm(dim=1)
    share: Tensor = longest / torch.maximum(size, longest)
    return direction * share[:, None]
