"""The protocol of a hypergradient strategy, and the driver that runs one over chunks of tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, OuterStep, Params, TaskParams, sum_tensors, task_dot
from fewshot_blo.errors import ConfigurationError, StructuralZeroError
from fewshot_blo.kernel import Order
from fewshot_blo.records.shapes import shapes


@dataclass(frozen=True)
class State:
    """What a strategy carries from one outer step to the next; tensors only, so it is saved as is.

    Attributes:
        scalars: schedules, 0-dimensional float64 tensors, on the host or where the tasks are.
        inner: inner parameters to start from, ``[T, ...]`` (warm start); empty for a cold start.
        multipliers: Lagrange multipliers, ``[T, ...]``; empty for their initial value.
    """

    scalars: Mapping[str, Tensor]
    inner: TaskParams
    multipliers: TaskParams

    def __repr__(self) -> str:
        scalars = [f"{name} {float(value):.4g}" for name, value in self.scalars.items()]
        return (
            f"State(scalars: {', '.join(scalars) or 'none'}\n  inner: {shapes(self.inner)}"
            f"\n  multipliers: {shapes(self.multipliers)})"
        )

    def plain(self) -> dict[str, Any]:
        """The state as a checkpoint holds it; ``State(**plain)`` gives it back."""
        return {
            "scalars": dict(self.scalars),
            "inner": dict(self.inner),
            "multipliers": dict(self.multipliers),
        }

    def to(self, device: torch.device | str) -> State:
        """The same state on a device."""
        moved = ({n: p.to(device) for n, p in part.items()} for part in self.plain().values())
        return State(*moved)

    def tasks(self, part: slice) -> State:
        """The state of some of the tasks."""
        return replace(
            self,
            inner={name: p[part] for name, p in self.inner.items()},
            multipliers={name: p[part] for name, p in self.multipliers.items()},
        )

    def cold(self) -> State:
        """The state without what belongs to single tasks: the next inner problems are new ones."""
        return replace(self, inner={}, multipliers={})


class Strategy(Protocol):
    """How to solve the inner problems and differentiate through their solution.

    A strategy is a frozen dataclass of settings with three pure functions. ``hypergradient`` is
    a mean over tasks and so may run on chunks of them; what depends on all tasks of a step, such
    as a schedule, belongs in ``advance``.

    One that takes no second derivatives of the losses says so by an attribute ``derivatives`` of
    "first".
    """

    def init(self) -> State:
        """The state before the first outer step."""
        ...

    def hypergradient(self, problem: Bilevel, state: State) -> OuterStep:
        """Solves the inner problems and differentiates the mean outer loss."""
        ...

    def advance(self, state: State, step: OuterStep) -> State:
        """The state after a step over all tasks, ready for a warm start."""
        ...


def derivatives_of(strategy: Strategy) -> Order:
    """The derivatives of the losses that a strategy takes: second ones if it says nothing."""
    derivatives: Order = getattr(strategy, "derivatives", "second")
    return derivatives


def outer_step(strategy: Strategy, problem: Bilevel, state: State) -> tuple[OuterStep, State]:
    """One outer step of a problem that fits into memory at once."""
    step = strategy.hypergradient(problem, state)
    step.check_finite(type(strategy).__name__)
    return step, strategy.advance(state, step)


EMPTY_STATE = State({}, {}, {})

IN_NO_LOSS = "add a proximal term (Initialization: prox > 0), make it part of a loss, or use Unroll"
"""The remedy for an outer variable that a strategy sees only through the losses."""


def check_not_negative(method: str, **settings: float) -> None:
    """Raises ConfigurationError if a setting of a strategy is negative."""
    for name, value in settings.items():
        if value < 0:
            raise ConfigurationError(f"{method}: {name} is {value}: it must not be negative")


def inner_start(problem: Bilevel, state: State) -> TaskParams:
    """Where the inner problems start: the state's parameters if warm, the problem's if cold."""
    return state.inner or problem.inner_init


def outer_gradients(output: Tensor, outer: Params) -> dict[str, Tensor | None]:
    """Gradient of a scalar with respect to the outer variables; None where it has no path."""
    if not output.requires_grad:
        return dict.fromkeys(outer)
    gradients = torch.autograd.grad(output, list(outer.values()), allow_unused=True)
    return dict(zip(outer, gradients, strict=True))


def inner_gradients(output: Tensor, inner: TaskParams, *, create_graph: bool = False) -> TaskParams:
    """Gradient of a scalar with respect to the inner parameters; zero where it has no path.

    The graph is kept for the gradients that follow.
    """
    if not output.requires_grad:
        return {name: torch.zeros_like(p) for name, p in inner.items()}
    gradients = torch.autograd.grad(
        output,
        list(inner.values()),
        create_graph=create_graph,
        retain_graph=True,
        materialize_grads=True,
    )
    return dict(zip(inner, gradients, strict=True))


def both_gradients(
    objective: Tensor, inner: TaskParams, outer: Params
) -> tuple[TaskParams, dict[str, Tensor | None]]:
    """Each task's gradient over its inner parameters and the mean's over the outer variables.

    One pass through the graph serves both. It is that of the tasks' sum, in which row t of the
    first is task t's own gradient, and the second is the sum over tasks of what their mean has.

    Args:
        objective: of each task, ``[T]``.
        inner: inner parameters, ``[T, ...]``; zero where the objective has no path to them.
        outer: outer variables; None where it has none.
    """
    if not objective.requires_grad:
        return {name: torch.zeros_like(p) for name, p in inner.items()}, dict.fromkeys(outer)
    leaves = [*inner.values(), *outer.values()]
    gradients = torch.autograd.grad(objective.sum(), leaves, allow_unused=True)
    over_inner, over_outer = gradients[: len(inner)], gradients[len(inner) :]
    return (
        {
            name: torch.zeros_like(p) if g is None else g
            for (name, p), g in zip(inner.items(), over_inner, strict=True)
        },
        {
            name: None if g is None else g / objective.numel()
            for name, g in zip(outer, over_outer, strict=True)
        },
    )


def add_gradients(
    outer: Params, parts: Iterable[Mapping[str, Tensor | None]], *, method: str, remedy: str
) -> dict[str, Tensor]:
    """Sums the parts of a hypergradient.

    Raises:
        StructuralZeroError: if an outer variable is in none of the parts, so that its
            hypergradient is zero by structure and not by value.
    """
    parts = list(parts)
    total: dict[str, Tensor] = {}
    for name, leaf in outer.items():
        present = [gradient for part in parts if (gradient := part[name]) is not None]
        if not present:
            raise StructuralZeroError(
                f"{method}: outer variable '{name}' ({list(leaf.shape)}) is in neither the inner "
                f"nor the outer loss, so its hypergradient is identically zero: {remedy}"
            )
        total[name] = sum_tensors(present)
    return total


def value_gap_step(
    problem: Bilevel, v: TaskParams, z: TaskParams, weight: Tensor, *, method: str
) -> OuterStep:
    """``du = mean_t F_u(v) + λ (G_u(v) - G_u(z))`` at constant v and z.

    Args:
        v: inner parameters reached, ``[T, ...]``.
        z: minimisers of G, ``[T, ...]``.
        weight: λ, a scalar or ``[T]``.
        method: name for the error where an outer variable is in no loss.
    """
    v = {name: p.detach().requires_grad_() for name, p in v.items()}
    f, g = problem.outer_loss(v), problem.inner_loss(v)
    penalised = f + weight * (g - problem.inner_loss(z))
    over_v, over_outer = both_gradients(penalised, v, problem.outer)
    gradient = add_gradients(problem.outer, [over_outer], method=method, remedy=IN_NO_LOSS)
    inner = {name: p.detach() for name, p in v.items()}
    return OuterStep(gradient, inner, f.detach(), g.detach(), {}, task_dot(over_v, over_v))
