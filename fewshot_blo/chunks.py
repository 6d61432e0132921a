"""The hypergradient of a batch of tasks, a chunk at a time."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fewshot_blo.bilevel import OuterStep, combine
from fewshot_blo.hypergrad import State, Strategy
from fewshot_blo.kernel.layers import fold
from fewshot_blo.kernel.memory import free_bytes, largest_chunk, peak_bytes
from fewshot_blo.problems import FewShotProblem, NormMode
from tasks import TaskBatch


def hypergradient(
    problem: FewShotProblem,
    strategy: Strategy,
    state: State,
    batch: TaskBatch,
    *,
    norm: NormMode = "transductive",
    chunk: int = 0,
    keys: Tensor | None = None,
) -> OuterStep:
    """The hypergradient of a batch of tasks with respect to the problem's outer variables.

    Chunks of tasks are differentiated one after another and their graphs freed; the result does
    not depend on the chunk size, up to rounding.

    Args:
        chunk: tasks at a time; 0 for all.
        keys: dropout keys, ``[T]``.
    """
    size = chunk or batch.tasks
    steps = []
    for start in range(0, batch.tasks, size):
        part = slice(start, start + size)
        bound = problem.bind(batch[part], norm, None if keys is None else keys[part])
        step = strategy.hypergradient(bound.bilevel, state.tasks(part))
        steps.append(replace(step, gradient=bound.pullback(step.gradient)))
    return combine(steps)


def measure_chunk(
    problem: FewShotProblem,
    strategy: Strategy,
    batch: TaskBatch,
    *,
    norm: NormMode,
    host_limit: float,
) -> int:
    """How many tasks fit into memory, from the measured peak of one of them.

    Args:
        host_limit: GiB that a chunk may take on the host; on a GPU it is what is free.
    """
    one = batch[:1]
    keys = dropout_keys(one, 0, 0)
    limit = int(host_limit * 2**30)
    if one.support_x.device.type == "cuda":
        limit = int(0.8 * free_bytes(one.support_x.device))

    def one_task() -> OuterStep:
        return hypergradient(problem, strategy, strategy.init(), one, norm=norm, keys=keys)

    return largest_chunk(peak_bytes(one_task), batch.tasks, limit)


def dropout_keys(batch: TaskBatch, seed: int, step: int) -> Tensor:
    """One dropout key a task, ``[T]``: a pure function of the seed and the task's number."""
    numbers = torch.arange(step * batch.tasks, (step + 1) * batch.tasks)
    return fold(numbers, seed + 1).to(batch.support_y.device)
