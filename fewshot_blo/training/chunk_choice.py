"""Choice of the chunk size, and of keeping or recomputing the graphs of inner steps.

Both use memory and are chosen together: the fastest combination that fits. Results do not depend
on the choice, up to rounding; measuring leaves the random generators unchanged.
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
"""Stands for the peak of a run that went out of memory."""

_WEIGHED = (2, 3)
"""Numbers of inner steps whose memory is measured to extrapolate to a longer unrolling."""

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
    """Chooses the chunk size, and whether graphs are recomputed, from measured memory and time.

    Args:
        problem: few-shot problem, after ``prepare``.
        strategies: strategies of the phases of the run; the choice fits all of them.
        batch: a batch of the run, T tasks.
        norm: norm mode of the query set.
        size: number of tasks at a time; 0 to choose.
        host_limit: memory in GiB that a chunk may use on the CPU; 0 for half of the free memory.
            On a GPU it may use four fifths of the free memory.
        recorded: whether steps are captured as CUDA graphs, which use memory too.
        setting: name of the setting of ``size``, for warnings.

    Raises:
        ConfigurationError: if a single task does not fit into memory.
    """
    device = batch.device
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
            # Runs out of memory once more and raises the error with the remedy.
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
    """Variants of a strategy by ``recompute``: both if it leaves that open, else itself alone."""
    kept, recomputed = (strategy.with_recompute(way) for way in (False, True))
    return {None: strategy} if kept == recomputed else {False: kept, True: recomputed}


def _long_steps(strategy: Strategy, few: int = TIMED[1]) -> int:
    """Number of inner steps if it is to be extrapolated from few steps; 0 if it is not."""
    shortened = strategy.shortened(few)
    return 0 if shortened == strategy else strategy.inner.most


def estimate_peaks(ways: Ways, one_task: Callable[[Strategy], object]) -> dict[bool | None, int]:
    """Peak memory of one task in bytes, by ``recompute``.

    With kept graphs, the peak is affine in the number of inner steps, so it is extrapolated from
    two short unrollings. With recomputed graphs, it is affine up to the point where the saved
    states use as much memory as a few graphs.

    Args:
        ways: variants of the strategy by ``recompute``.
        one_task: differentiates one task with a strategy.
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

    # The first passes of a kind copy their inputs, which the others do not.
    strategy = next(iter(ways.values()))
    if strategy.shortened(1) != strategy:
        peak(strategy.shortened(1))
    peaks: dict[bool | None, int] = {}
    graphs = _TOO_MUCH  # Recomputed graphs never use more, except for the fewest states.
    for way, strategy in ways.items():
        steps = _long_steps(strategy, _WEIGHED[1])
        # For a strategy set to recompute, the extrapolation would need the peak of kept graphs.
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
