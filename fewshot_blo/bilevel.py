"""The whole mathematical interface between problems and hypergradient strategies.

    min over outer   mean_t F_t(inner_t, outer)
    subject to       inner_t  ≈  argmin G_t(·, outer)

F and G are functions of task-stacked inner parameters that return one loss a task. They close
over the outer variables, which are leaves of the autograd graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, fields
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from fewshot_blo.errors import SINGULAR, ConfigurationError, DivergenceError
from fewshot_blo.records.shapes import shapes

Params = Mapping[str, Tensor]
"""Named tensors without a task axis."""

TaskParams = dict[str, Tensor]
"""Named tensors with a leading task axis, ``[T, ...]``."""

TaskLoss = Callable[[TaskParams], Tensor]
"""From task-stacked parameters to one loss a task, ``[T]``; row t depends on task t alone."""


class Block(NamedTuple):
    """Part ``number`` of ``total`` of the data; a loss of all data is the mean over its parts."""

    number: int = 0
    total: int = 1


@dataclass(frozen=True)
class InnerConstraints:
    """Where the inner parameters may be.

    Attributes:
        equalities, inequalities: ``TaskParams -> [T, m]``, zero and not positive where v is
            feasible; those of sets included.
        project: nearest feasible point; None where there are other constraints than sets of single
            parameters.
        fixed: whether the feasible set is the same for all outer variables.
    """

    equalities: TaskLoss
    inequalities: TaskLoss
    project: Callable[[TaskParams], TaskParams] | None
    fixed: bool


@dataclass(frozen=True)
class Bilevel:
    """T inner problems that share their outer variables.

    Attributes:
        outer: the outer variables; leaves that require gradients.
        inner_init: initial inner parameters, ``[T, ...]``; may depend on ``outer``.
        inner_loss: G, ``TaskParams -> [T]``.
        outer_loss: F, ``TaskParams -> [T]``.
        constraints: of the inner problems; None for none.
        inner_block, outer_block: the part of the data that G, after the last inner step, and F are
            of; None where batches are not numbered.

    Raises:
        ConfigurationError: if an outer variable is not a leaf tensor, there are no outer or no
            inner variables, or the inner parameters differ in their number of tasks.
    """

    outer: Params
    inner_init: TaskParams
    inner_loss: TaskLoss
    outer_loss: TaskLoss
    constraints: InnerConstraints | None = None
    inner_block: Block | None = Block()
    outer_block: Block | None = Block()

    def __post_init__(self) -> None:
        for name, leaf in self.outer.items():
            if not (leaf.is_leaf and leaf.requires_grad):
                raise ConfigurationError(
                    f"outer variable '{name}' is not a leaf that requires a gradient: "
                    "pass tensor.detach().requires_grad_()"
                )
        if not self.outer:
            raise ConfigurationError("outer is empty: there is no variable to learn")
        sizes = {name: p.shape[0] if p.ndim else None for name, p in self.inner_init.items()}
        if not sizes:
            raise ConfigurationError("inner_init is empty: at least one inner parameter is needed")
        if len(set(sizes.values())) != 1 or None in sizes.values():
            raise ConfigurationError(f"inner parameters differ in their number of tasks: {sizes}")

    def __repr__(self) -> str:
        return (
            f"Bilevel({self.tasks} task{'' if self.tasks == 1 else 's'}\n"
            f"  outer: {shapes(self.outer)}\n  inner: {shapes(self.inner_init)})"
        )

    @property
    def tasks(self) -> int:
        """T, the number of tasks."""
        return next(iter(self.inner_init.values())).shape[0]

    @property
    def project(self) -> Callable[[TaskParams], TaskParams] | None:
        """The nearest feasible inner parameters; None without constraints."""
        return None if self.constraints is None else self.constraints.project


@dataclass(frozen=True)
class OuterStep:
    """What a strategy returns for T tasks.

    A strategy whose state needs more of a step adds fields in a subclass: tensors ``[T]``, or
    mappings of tensors ``[T, ...]``.

    Attributes:
        gradient: hypergradient of ``mean_t F_t`` with respect to each outer variable.
        inner: the inner parameters reached, ``[T, ...]``, detached.
        outer_loss: F at ``inner``, ``[T]``, detached.
        inner_loss: G at ``inner``, ``[T]``, detached.
        figures: what the strategy measured, by name, ``[T]`` each.
        all_tasks: T, where the mappings are of a part of the tasks, which is that of one of
            several processes; None for that of ``inner``.

    Raises:
        ConfigurationError: if a loss does not have the shape ``[T]``.
    """

    gradient: Params
    inner: TaskParams
    outer_loss: Tensor
    inner_loss: Tensor
    figures: TaskParams = field(default_factory=dict, kw_only=True)
    all_tasks: InitVar[int | None] = field(default=None, kw_only=True)

    def __post_init__(self, all_tasks: int | None) -> None:
        tasks = next(iter(self.inner.values())).shape[0] if all_tasks is None else all_tasks
        for name, losses in (("outer_loss", self.outer_loss), ("inner_loss", self.inner_loss)):
            if losses.shape != (tasks,):
                raise ConfigurationError(
                    f"{name} has shape {list(losses.shape)}: it must return one loss a task, "
                    f"[{tasks}]"
                )

    def __repr__(self) -> str:
        means = f"{float(self.outer_loss.mean()):.4g}, inner {float(self.inner_loss.mean()):.4g}"
        return (
            f"{type(self).__name__}({self.tasks} task{'' if self.tasks == 1 else 's'}, "
            f"mean outer loss {means}"
            f"\n  gradient: {shapes(self.gradient)}\n  inner: {shapes(self.inner)})"
        )

    @property
    def tasks(self) -> int:
        """T, the number of tasks."""
        return self.outer_loss.shape[0]

    def check_finite(self, method: str) -> None:
        """Raises an error where a step has diverged.

        Raises:
            DivergenceError: if a loss or gradient is NaN or infinite.
        """
        every = (self.outer_loss, self.inner_loss, *self.gradient.values())
        if torch.stack([x.isfinite().all() for x in every]).all():  # One host sync.
            return
        for name, losses in (("outer loss", self.outer_loss), ("inner loss", self.inner_loss)):
            if not losses.isfinite().all():
                task = int((~losses.isfinite()).nonzero()[0])
                raise DivergenceError(
                    f"{method}: the {name} of task {task} is {float(losses[task])}: the inner "
                    "steps probably diverge; lower the inner step size or the number of steps"
                    + (SINGULAR if losses[task].isnan() else "")
                )
        for name, gradient in self.gradient.items():
            if not gradient.isfinite().all():
                raise DivergenceError(
                    f"{method}: the hypergradient of '{name}' is not finite although the losses "
                    "are: lower the inner step size, add damping or a proximal term"
                )


Step = TypeVar("Step", bound=OuterStep)


def combine(steps: Sequence[Step]) -> Step:
    """The step of all tasks from those of consecutive chunks; gradients are weighted by tasks."""
    if len(steps) == 1:
        return steps[0]
    total = sum(step.tasks for step in steps)
    weights = [step.tasks / total for step in steps]
    gradient = {
        name: sum_tensors([w * s.gradient[name] for w, s in zip(weights, steps, strict=True)])
        for name in steps[0].gradient
    }
    names = [field.name for field in fields(steps[0]) if field.name != "gradient"]
    stacked = {name: _concatenate([getattr(step, name) for step in steps]) for name in names}
    return type(steps[0])(gradient=gradient, **stacked)


def sum_tensors(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of tensors of one shape."""
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total


def task_dot(a: TaskParams, b: TaskParams) -> Tensor:
    """Inner product of each task's parameters, ``[T]``."""
    return sum_tensors([(a[name] * b[name]).reshape(len(a[name]), -1).sum(1) for name in a])


def task_flat(params: TaskParams) -> Tensor:
    """All parameters of a task in a row, ``[T, n]``."""
    return torch.cat([p.reshape(len(p), -1) for p in params.values()], 1)


def task_like(flat: Tensor, like: TaskParams) -> dict[str, Tensor]:
    """``[T, n]`` as parameters ``[T, ...]`` of the names, shapes and type of others."""
    parts = torch.split(flat, [p[0].numel() for p in like.values()], 1)
    return {n: x.reshape(p.shape).to(p) for (n, p), x in zip(like.items(), parts, strict=True)}


def _concatenate(parts: Sequence[Any]) -> Any:
    """Concatenates tensors, or mappings of tensors, along the task axis."""
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
