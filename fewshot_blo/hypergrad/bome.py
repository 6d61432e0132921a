"""BOME: a value-function constraint whose multiplier follows from the gradients at hand."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from fewshot_blo.bilevel import Bilevel, OuterStep, TaskParams, task_dot
from fewshot_blo.hypergrad.gradients import inner_gradients, value_gap_step
from fewshot_blo.hypergrad.strategy import Bears, State, Strategy, inner_start
from fewshot_blo.kernel import SGD, InnerSteps, Order, adapt
from fewshot_blo.kernel.rules import AdGD, by_task
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Natural, NonNegative

_ROUNDING = 1e-12
"""Squared norm of a gradient of G, relative to that of F, that counts as zero."""


@checked
@dataclass(frozen=True)
class BOME(Strategy[State]):
    """``v ← v - α (F_v + λ q_v)`` with ``q = G(v) - G(z)``, then ``du = F_u + λ q_u``.

    ``λ = max(η - <F_v, q_v> / |q_v|², 0)`` is the smallest weight at which a step lowers q by at
    least ``η |q_v|²``; z is where K steps on G lead from v, held constant. No second derivative is
    taken. The multiplier is computed for each task from the gradients over its own v: in the
    paper there is one inner problem, and the gradients over u enter it too.

    Attributes:
        inner: steps over v; their rule is that of z, too.
        value_steps: K, steps from v to z; to the tolerance of the steps over v where unset.
        eta: η.

    Source: Liu, Ye et al., "BOME!" (arXiv 2209.08709), algorithm 1.
    """

    inner: InnerSteps = InnerSteps()
    value_steps: Natural | None = None
    eta: NonNegative = 0.5

    def for_training(self) -> BOME:
        """With 20 steps over v and 5 to z of gradient descent where they are unset."""
        value_steps = 5 if self.value_steps is None else self.value_steps
        return replace(self, inner=self.inner.filled(20, SGD()), value_steps=value_steps)

    @property
    def bears(self) -> Bears:
        """Where v is feasible for all u, the derivative of ``min G`` is that of G alone."""
        return "fixed sets"

    @property
    def derivatives(self) -> Order:
        """First order."""
        return "first"

    @property
    def is_derivative(self) -> bool:
        """It falls by steps on F and q together."""
        return False

    def hypergradient(self, problem: Bilevel, state: State) -> OuterStep:
        """Descends on F while q falls, and differentiates at the last v."""

        def penalised(v: TaskParams) -> Tensor:
            # G(z) is a constant here, and so no part of the gradient over v.
            return problem.outer_loss(v) + self._multiplier(problem, v) * problem.inner_loss(v)

        start = inner_start(problem, state)
        v = adapt(penalised, start, self._to_v(start), outer=problem.outer, project=problem.project)
        to_value = replace(self.inner, steps=self.value_steps)
        z = adapt(problem.inner_loss, v, to_value, outer=problem.outer, project=problem.project)
        return value_gap_step(problem, v, z, self._multiplier(problem, v), method="BOME")

    def _to_v(self, start: TaskParams) -> InnerSteps:
        """Steps over v: λ and the gap divide by its error, so that of z has to be far smaller.

        What they follow is the gradient of no function, as λ moves with v.
        """
        inner = self.inner if self.inner.rule is not None else replace(self.inner, rule=AdGD())
        ends_at = inner.ends_at(next(iter(start.values())).dtype)
        if inner.steps is not None or inner.tolerance is not None or ends_at is None:
            return inner
        return replace(inner, tolerance=ends_at**0.5)

    def _multiplier(self, problem: Bilevel, v: TaskParams) -> Tensor:
        """λ at v, ``[T]``."""
        v = {name: p.detach().requires_grad_() for name, p in v.items()}
        f_v = inner_gradients(problem.outer_loss(v).sum(), v)
        q_v = inner_gradients(problem.inner_loss(v).sum(), v)
        f_v, q_v = _free(problem, v, f_v), _free(problem, v, q_v)
        # At a minimiser of G its gradient is rounding error, which must not decide λ.
        squared = task_dot(q_v, q_v) + _ROUNDING * task_dot(f_v, f_v)
        ratio = task_dot(f_v, q_v) / squared.where(squared > 0, 1)
        return (self.eta - ratio).clamp(min=0)


def _free(problem: Bilevel, v: TaskParams, gradient: TaskParams) -> TaskParams:
    """Without what the projection would cut off of a short step: v cannot move there."""
    if problem.project is None:
        return gradient
    v = {name: p.detach() for name, p in v.items()}
    size = task_dot(gradient, gradient).sqrt()
    h = 1e-6 * (1 + task_dot(v, v).sqrt()) / size.where(size > 0, 1)
    at = problem.project({name: p - by_task(h, p) * gradient[name] for name, p in v.items()})
    return {name: (p - at[name]) / by_task(h, p) for name, p in v.items()}
