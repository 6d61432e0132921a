"""``hypergradient``: the hypergradient of a batch of tasks, computed a chunk at a time."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from fewshot_blo.bilevel import OuterStep, combine
from fewshot_blo.hypergrad import State, Strategy
from fewshot_blo.kernel.graph import Graphs, Tensors
from fewshot_blo.kernel.layers import fold
from fewshot_blo.kernel.precision import product_precision
from fewshot_blo.machine.chunk import Chunk
from fewshot_blo.problems import FewShotProblem, NormMode
from fewshot_blo.tasks import TaskBatch
from fewshot_blo.tasks.batch import send


def hypergradient(
    problem: FewShotProblem,
    strategy: Strategy,
    state: State,
    batch: TaskBatch,
    *,
    norm: NormMode = "transductive",
    chunk: int | Chunk = 0,
    keys: Tensor | None = None,
    graphs: Graphs | None = None,
) -> OuterStep:
    """The hypergradient of a batch of tasks with respect to the problem's outer variables.

    Chunks of tasks are differentiated one after another, and the graph of each is freed; the
    result does not depend on the chunk size, up to rounding.

    Args:
        problem: few-shot problem, after ``prepare``.
        strategy: strategy that computes the hypergradient.
        state: state of the strategy for the T tasks.
        batch: T tasks.
        norm: norm mode of the query set.
        chunk: number of tasks at a time; 0 for all. If memory runs out it is lowered, and graphs
            are recomputed if one task does not fit with kept graphs; a ``Chunk`` remembers both.
        keys: dropout keys ``[T]``; None draws them from the global generator.
        graphs: captured CUDA graphs of this problem's steps, used if keys are given.

    Raises:
        ConfigurationError: if a single task does not fit into memory.
    """
    device = batch.device
    held = chunk if isinstance(chunk, Chunk) else Chunk(chunk or batch.tasks)
    ways = {way: strategy.with_recompute(way) for way in (None, False, True)}
    held.can_recompute = ways[held.recompute] != ways[True]

    def compute(part: slice) -> OuterStep:
        own, way = state.tasks(part), ways[held.recompute]
        if keys is None:
            return whole_step(problem, way, own, batch[part], norm, None)
        if graphs is None:
            return whole_step(problem, way, own, batch[part], norm, keys[part])
        given = (id(strategy), held.recompute)
        return _replayed_step(graphs, problem, way, own, batch[part], norm, keys[part], given)

    return combine(held.run(compute, batch.tasks, device))


def whole_step(
    problem: FewShotProblem,
    strategy: Strategy,
    state: State,
    batch: TaskBatch,
    norm: NormMode,
    keys: Tensor | None,
) -> OuterStep:
    """The hypergradient of all tasks at once; arguments as in ``hypergradient``."""
    with product_precision(problem.precision, batch.device):
        bound = problem.bind(batch, norm, keys)
        step = strategy.hypergradient(bound.bilevel, state)
        return replace(step, gradient=bound.pullback(step.gradient))


def _replayed_step(
    graphs: Graphs,
    problem: FewShotProblem,
    strategy: Strategy,
    state: State,
    batch: TaskBatch,
    norm: NormMode,
    keys: Tensor,
    method: Hashable,
) -> OuterStep:
    """The same step as a captured graph: what changes between steps is an input, or in-place."""
    padded, network = batch.padded, problem.network
    groups: dict[str, Any] = {
        "batch": batch.flat,
        "keys": {"keys": keys},
        "schedules": state.schedules,
        **{name: part for name, part in state.plain().items() if name not in state.schedules},
    }
    inputs = {f"{group}/{name}": x for group, part in groups.items() for name, x in part.items()}

    def step(inputs: Tensors) -> dict[str, Any]:
        given: dict[str, dict[str, Tensor]] = {group: {} for group in groups}
        for name, x in inputs.items():
            group, _, own = name.partition("/")
            given[group][own] = x
        tasks = TaskBatch.from_flat(given.pop("batch")).known(padded=padded)
        own_keys = given.pop("keys")["keys"]
        parts: dict[str, Any] = {**given.pop("schedules"), **given}
        own_state = type(state)(**parts)
        result = whole_step(problem, strategy, own_state, tasks, norm, own_keys)
        return {field.name: getattr(result, field.name) for field in fields(result)}

    in_place = [*problem.outer.values(), *network.parameters(), *network.buffers()]
    settings = (norm, padded, network.training, problem.backend, problem.precision, method)
    addresses = tuple(p.data_ptr() for p in in_place)
    return strategy.step_kind(**graphs.run(step, inputs, (settings, addresses)))


def dropout_keys(batch: TaskBatch, seed: int, step: int) -> Tensor:
    """Dropout keys ``[T]``, one per task: a pure function of the seed and the task's number."""
    numbers = torch.arange(step * batch.tasks, (step + 1) * batch.tasks)
    return send(fold(numbers, seed + 1), batch.support_y.device)
