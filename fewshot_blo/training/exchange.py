"""What several processes exchange in an outer step: one sum of a flat buffer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import reduce
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from fewshot_blo.bilevel import OuterStep
from fewshot_blo.hypergrad import State
from fewshot_blo.machine.processes import Processes


def task_to_compute(own: slice) -> slice:
    """The tasks that a process computes: its own, or the first one, which does not count.

    With fewer tasks than processes, those without one keep step with the others this way.
    """
    return own if own.stop > own.start else slice(0, 1)


def step_of_all(step: OuterStep, own: slice, tasks: int, processes: Processes) -> OuterStep:
    """The outer step of all tasks, from those of the processes.

    The hypergradient is the mean over all tasks, and the tensors ``[T]`` are those of all tasks.
    Mappings of tensors ``[T, ...]`` remain those of this process's tasks.

    Args:
        step: step of the tasks of this process, after ``task_to_compute``.
        own: this process's part of the tasks.
        tasks: T, number of tasks of all processes.
        processes: the processes.
    """
    if processes.count == 1:
        return step
    return split(processes.sum(flat(step, own, tasks)), step, own, tasks)


def flat(step: OuterStep, own: slice, tasks: int) -> Tensor:
    """What a process adds to the sum: its weighted gradients, and its rows of the tensors."""
    count = own.stop - own.start
    weighted = [(g * (count / tasks)).flatten() for g in step.gradient.values()]
    rows = [
        torch.cat([x.new_zeros(own.start), x[:count], x.new_zeros(tasks - own.stop)])
        for x in _tensors(step).values()
    ]
    dtype = reduce(torch.promote_types, [x.dtype for x in (*weighted, *rows)])
    return torch.cat([x.to(dtype) for x in (*weighted, *rows)])


def split(total: Tensor, step: OuterStep, own: slice, tasks: int) -> OuterStep:
    """The step of all tasks from the sum of ``flat`` over the processes; the inverse of it."""
    count, tensors = own.stop - own.start, _tensors(step)
    sizes = [*(g.numel() for g in step.gradient.values()), *(tasks for _ in tensors)]
    parts = [total[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]
    gradients, rows = parts[: len(step.gradient)], parts[len(step.gradient) :]
    changed: dict[str, Any] = {
        field.name: {name: x[:count] for name, x in getattr(step, field.name).items()}
        for field in fields(step)
        if field.name != "gradient" and field.name not in tensors
    }
    changed["gradient"] = {
        name: part.reshape(g.shape).to(g.dtype)
        for (name, g), part in zip(step.gradient.items(), gradients, strict=True)
    }
    for (name, x), row in zip(tensors.items(), rows, strict=True):
        changed[name] = row.to(x.dtype)
    return replace(step, all_tasks=tasks, **changed)


def gathered_state(state: State, processes: Processes) -> State:
    """The state of all tasks, on the CPU, from those of the processes' parts."""
    if processes.count == 1:
        return state
    host = state.map(lambda x: x.cpu())
    parts = processes.collect(host.plain())
    joined: dict[str, Any] = {
        name: _concatenated([part[name] for part in parts]) if isinstance(value, Mapping) else value
        for name, value in parts[0].items()
    }
    return state.restored(joined)


def own_state(state: State, processes: Processes) -> State:
    """This process's part of the state of all tasks; the inverse of ``gathered_state``."""
    parts = [value for value in state.plain().values() if isinstance(value, Mapping)]
    tasks = next((len(x) for part in parts for x in part.values()), 0)
    return state.tasks(processes.part(tasks))


def _concatenated(parts: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _tensors(step: OuterStep) -> dict[str, Tensor]:
    """The tensors ``[T]`` of a step, by the name of their field."""
    found = {field.name: getattr(step, field.name) for field in fields(step)}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}
