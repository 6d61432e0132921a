"""The hypergradient of a batch of tasks, a chunk at a time."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from fewshot_blo.bilevel import OuterStep, combine
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad import State, Strategy
from fewshot_blo.kernel.graph import Graphs, Tensors
from fewshot_blo.kernel.layers import fold
from fewshot_blo.kernel.memory import (
    free_bytes,
    is_out_of_memory,
    largest_chunk,
    peak_bytes,
    peak_resident_bytes,
    release_memory,
)
from fewshot_blo.kernel.precision import product_precision
from fewshot_blo.problems import FewShotProblem, NormMode
from tasks import TaskBatch
from tasks.batch import send

Result = TypeVar("Result")
_HOST_BYTES, _GPU_BYTES = 2**28, 2**32


@dataclass
class Chunk:
    """How many tasks are computed at a time; fewer from the first time that memory runs out.

    Attributes:
        size: tasks at a time.
        setting: the setting that fixes it from the start, for the warning; empty for none.
        what: the word for the tasks where they are something else.
        recompute: whether a strategy that leaves it open makes the graphs of its inner steps again
            in place of keeping them; None as that strategy does by itself.
        can_recompute: whether a strategy that keeps its graphs now could recompute them, which is
            done where memory runs out with a single task.
        why: how this was chosen, on one line.
    """

    size: int
    setting: str = "chunk"
    what: str = "task"
    recompute: bool | None = None
    can_recompute: bool = False
    why: str = ""

    def run(
        self, compute: Callable[[slice], Result], tasks: int, device: torch.device
    ) -> list[Result]:
        """``compute`` of consecutive slices of ``tasks`` tasks.

        Where memory runs out, a warning says so, and that slice is computed again with half as
        many tasks, as are those that follow, here and in later calls; a single task is computed
        again with recomputed graphs, where that can be.

        Raises:
            ConfigurationError: if a single task does not fit.
        """
        results: list[Result] = []
        start = 0
        while start < tasks:
            stop = min(start + self.size, tasks)
            reason = None
            try:
                results.append(compute(slice(start, stop)))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            # Only now, for the exception holds the frames, and they the tensors.
            if reason is None:
                start = stop
            else:
                self._take_less(stop - start, device, reason)
        return results

    def _take_less(self, tasks: int, device: torch.device, reason: str) -> None:
        if tasks == 1 and self.can_recompute:
            release_memory(device)
            self.recompute, self.can_recompute = True, False
            warnings.warn(
                f"{device} ran out of memory with one {self.what} whose graphs of all inner steps "
                "are kept: going on with recomputed ones (set recompute to start so)",
                stacklevel=3,
            )
            return
        if tasks == 1:
            peak, free = (n / 2**30 for n in (peak_resident_bytes(device), free_bytes(device)))
            raise ConfigurationError(
                f"one {self.what} at a time does not fit into the memory of {device}: {reason} "
                f"(peak {peak:.2f} GiB, free now {free:.2f} GiB); use recompute, fewer inner steps "
                "or first_order where inner steps are unrolled, smaller images (size), fewer query "
                "images, or a smaller network"
            )
        release_memory(device)
        self.size = (tasks + 1) // 2
        advice = f" (set {self.setting} to {self.size} to start so)" if self.setting else ""
        warnings.warn(
            f"{device} ran out of memory with {tasks} {self.what}s at a time: going on with "
            f"{self.size}{advice}",
            stacklevel=3,
        )


def at_a_time(one: Callable[[], object], count: int, device: torch.device) -> int:
    """How many are computed at a time without gradients, from the measured peak of one.

    Not more than it takes to make the work of Python small beside that of the processor.

    Args:
        one: computes one.
        count: how many there are.
        device: where.
    """
    most = _GPU_BYTES if device.type == "cuda" else _HOST_BYTES
    return largest_chunk(peak_bytes(one), count, min(most, free_bytes(device) // 2))


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

    Chunks of tasks are differentiated one after another and their graphs freed; the result does
    not depend on the chunk size, up to rounding.

    Args:
        chunk: tasks at a time; 0 for all. Fewer where memory runs out, and recomputed graphs where
            one task with kept ones does not fit; a ``Chunk`` remembers both.
        keys: dropout keys, ``[T]``.
        graphs: of steps of this problem, which are recorded and replayed where keys are given.

    Raises:
        ConfigurationError: if a single task does not fit into memory.
    """
    device = batch.support_x.device
    held = chunk if isinstance(chunk, Chunk) else Chunk(chunk or batch.tasks)
    ways = {way: with_recompute(strategy, way) for way in (None, False, True)}
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


def with_recompute(strategy: Strategy, recompute: bool | None) -> Strategy:
    """The strategy with ``recompute`` set where it leaves that open, by its own rule for None."""
    method = getattr(strategy, "with_recompute", None)
    result: Strategy = strategy if method is None else method(recompute)
    return result


def whole_step(
    problem: FewShotProblem,
    strategy: Strategy,
    state: State,
    batch: TaskBatch,
    norm: NormMode,
    keys: Tensor | None,
) -> OuterStep:
    """The hypergradient of all tasks at a time; arguments as of ``hypergradient``."""
    with product_precision(problem.precision, batch.support_x.device):
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
    """The same step; what changes from one to the next goes in as tensors, or is read in place."""
    padded, network = batch.padded, problem.network
    groups: dict[str, Mapping[str, Tensor]] = {
        "batch": {field.name: getattr(batch, field.name) for field in fields(batch)},
        "scalars": state.scalars,
        "inner": state.inner,
        "multipliers": state.multipliers,
        "keys": {"keys": keys},
    }
    inputs = {f"{group}/{name}": x for group, part in groups.items() for name, x in part.items()}

    def step(inputs: Tensors) -> dict[str, Any]:
        given: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, x in inputs.items():
            group, _, own = name.partition("/")
            given[group][own] = x
        tasks = TaskBatch(**given["batch"]).known(padded=padded)
        own_state = State(given["scalars"], given["inner"], given["multipliers"])
        result = whole_step(problem, strategy, own_state, tasks, norm, given["keys"]["keys"])
        return {field.name: getattr(result, field.name) for field in fields(result)}

    in_place = [*problem.outer.values(), *network.parameters(), *network.buffers()]
    settings = (norm, padded, network.training, problem.backend, problem.precision, method)
    addresses = tuple(p.data_ptr() for p in in_place)
    return OuterStep(**graphs.run(step, inputs, (settings, addresses)))


def dropout_keys(batch: TaskBatch, seed: int, step: int) -> Tensor:
    """One dropout key a task, ``[T]``: a pure function of the seed and the task's number."""
    numbers = torch.arange(step * batch.tasks, (step + 1) * batch.tasks)
    return send(fold(numbers, seed + 1), batch.support_y.device)
