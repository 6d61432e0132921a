"""Choosing how a batch is differentiated: tasks at a time, and graphs kept or made again.

Both are chosen together, for both take memory: what is fastest of what fits. Results do not depend
on the choice, up to rounding, and making it leaves random generators as they were.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence

import torch

from fewshot_blo.bilevel import OuterStep
from fewshot_blo.hypergrad import Strategy
from fewshot_blo.kernel.recompute import KEPT_STEPS, least_states
from fewshot_blo.machine.chunk import Chunk
from fewshot_blo.machine.memory import budget_bytes, is_out_of_memory, peak_bytes
from fewshot_blo.machine.timing import seconds
from fewshot_blo.problems import FewShotProblem, NormMode
from fewshot_blo.tasks import TaskBatch
from fewshot_blo.training.chunk_candidates import (
    TIMED,
    Candidate,
    list_candidates,
    pick,
    reason,
    tasks_in_words,
    time_candidates,
)
from fewshot_blo.training.step import dropout_keys, whole_step

logger = logging.getLogger(__name__)

_TOO_MUCH = sys.maxsize
"""The peak of what ran out of memory when it was measured."""

_WEIGHED = (2, 3)
"""Inner steps of which the memory of a longer unrolling follows."""

Ways = Mapping[bool | None, Strategy]


def choose_chunk(
    problem: FewShotProblem,
    strategies: Sequence[Strategy],
    batch: TaskBatch,
    *,
    norm: NormMode,
    size: int = 0,
    host_limit: float = 0.0,
    recorded: bool = False,
    setting: str = "chunk",
) -> Chunk:
    """Tasks at a time, and whether graphs are recomputed, from measured memory and time.

    Args:
        problem: prepared.
        strategies: that will take turns in a run; what is chosen fits all of them.
        batch: of the run.
        norm: of the query set.
        size: tasks at a time; 0 to choose.
        host_limit: GiB that a chunk may take on the host; 0 for half of what is free there. On a
            GPU it may take four fifths of what is free.
        recorded: kernels are recorded on a GPU and replayed, which takes memory as well.
        setting: name of the setting of ``size``, for a warning.

    Raises:
        ConfigurationError: if a single task does not fit into memory.
    """
    device = batch.support_x.device
    budget = budget_bytes(device, recorded=recorded)
    if device.type == "cpu" and host_limit:
        budget = min(budget, int(host_limit * 2**30))

    def differentiate(method: Strategy, tasks: int) -> OuterStep:
        part = batch[:tasks]
        return whole_step(problem, method, method.init(), part, norm, dropout_keys(part, 0, 0))

    def choose(strategy: Strategy) -> Chunk:
        ways = _ways(strategy)
        if size and len(ways) == 1:
            return Chunk(size, why=f"{tasks_in_words(size)} at a time, as set")
        peaks = estimate_peaks(ways, lambda method: differentiate(method, 1))
        if min(peaks.values()) == _TOO_MUCH:
            # Runs out of memory once more, and says what to do.
            Chunk(1).run(lambda _: differentiate(list(ways.values())[-1], 1), 1, device)
        candidates = list_candidates(peaks, batch.tasks, budget, size, device)

        def take(candidate: Candidate, steps: int | None) -> float:
            method = ways[candidate.recompute]
            method = method if steps is None else method.shortened(steps)
            chunk_seconds = seconds(lambda: differentiate(method, candidate.size), device)
            return chunk_seconds * batch.tasks / candidate.size

        times = time_candidates(candidates, take, _long_steps(strategy))
        best = pick(candidates, times)
        return Chunk(best.size, recompute=best.recompute, why=reason(best, times, budget))

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        found = [choose(strategy) for strategy in strategies]
    recompute = [chunk.recompute for chunk in found if chunk.recompute is not None]
    why = "; then ".join(dict.fromkeys(chunk.why for chunk in found))
    logger.info(why)
    return Chunk(
        min(chunk.size for chunk in found),
        setting,
        recompute=any(recompute) if recompute else None,
        why=why,
    )


def _ways(strategy: Strategy) -> Ways:
    """By ``recompute`` where a strategy leaves it open."""
    kept, recomputed = (strategy.with_recompute(way) for way in (False, True))
    return {None: strategy} if kept == recomputed else {False: kept, True: recomputed}


def _long_steps(strategy: Strategy, few: int = TIMED[1]) -> int:
    """The number of inner steps where it is to be told from few ones; 0 where it is not."""
    shortened = strategy.shortened(few)
    return 0 if shortened == strategy else strategy.inner.most


def estimate_peaks(ways: Ways, one_task: Callable[[Strategy], object]) -> dict[bool | None, int]:
    """Bytes that one task takes.

    The peak of kept graphs is affine in the number of inner steps, and so two short unrollings
    tell that of a long one. That of recomputed graphs is affine up to where their states take the
    memory of a few graphs.

    Args:
        ways: to differentiate.
        one_task: differentiates one.
    """

    def peak(strategy: Strategy) -> int:
        try:
            return peak_bytes(lambda: one_task(strategy))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return _TOO_MUCH

    def extrapolate(strategy: Strategy) -> Callable[[int], int]:
        less, more = (peak(strategy.shortened(count)) for count in _WEIGHED)
        slope = max(0, more - less)
        return lambda count: min(_TOO_MUCH, more + slope * max(0, count - _WEIGHED[1]))

    peaks: dict[bool | None, int] = {}
    graphs = _TOO_MUCH  # Recomputed graphs never take more, unless for the fewest states.
    for way, strategy in ways.items():
        steps = _long_steps(strategy, _WEIGHED[1])
        # What a strategy that is set to recompute may take depends on the graphs kept otherwise.
        if not steps or (way is None and getattr(strategy, "recompute", False)):
            peaks[way] = peak(strategy)
            continue
        at = extrapolate(strategy)
        peaks[way] = at(steps)
        if way:
            peaks[way] = min(at(steps), max(graphs, at(least_states(steps))))
        else:
            graphs = at(KEPT_STEPS)
    return peaks
