"""Candidate chunk sizes for a batch of tasks: which fit into memory, and which is fastest."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from fewshot_blo.machine.memory import is_out_of_memory, largest_chunk

_SMALL = 2**29
"""Bytes of a small chunk, tried on the CPU besides the largest chunk: it may use caches better."""

TIMED = (2, 6)
"""Numbers of inner steps that are timed to extrapolate the time of a longer unrolling."""

_ROUNDS, _SECONDS = 3, 4.0
"""Largest number of timing rounds over all candidates, and seconds after which no round starts."""

_ALIKE = 1.03
"""Factor of the least time within which the candidate with the least memory is chosen."""


@dataclass(frozen=True)
class Candidate:
    """A way to differentiate a batch.

    Attributes:
        recompute: whether graphs are recomputed, as in ``Chunk``.
        size: number of tasks at a time.
        peak: estimated peak memory of a chunk in bytes.
    """

    recompute: bool | None
    size: int
    peak: int


def list_candidates(
    peaks: Mapping[bool | None, int], tasks: int, budget: int, size: int, device: torch.device
) -> list[Candidate]:
    """Candidates that fit into memory: the largest chunks, and on the CPU small chunks too.

    If nothing fits, the candidate with the smallest peak.

    Args:
        peaks: estimated peak bytes of one task, by ``recompute``.
        tasks: number of tasks in the batch.
        budget: bytes that a chunk may use.
        size: chunk size if it is set, else 0.
        device: device of the batch.
    """
    limits = {budget} if device.type == "cuda" else {budget, min(budget, _SMALL)}
    found: list[Candidate] = []
    for way, peak in peaks.items():
        sizes = {size} if size else {largest_chunk(peak, tasks, limit) for limit in limits}
        fitting = [Candidate(way, n, n * peak) for n in sorted(sizes) if n * peak <= budget]
        # Recomputing does more work than keeping graphs: it is faster only with larger chunks.
        largest = max((candidate.size for candidate in found), default=0)
        found += [c for c in fitting if not way or c.size > largest]
    if found:
        return found
    way = min(peaks, key=lambda way: peaks[way])
    return [Candidate(way, size or 1, (size or 1) * peaks[way])]


def time_candidates(
    candidates: Sequence[Candidate], take: Callable[[Candidate, int | None], float], steps: int
) -> dict[Candidate, float]:
    """Seconds per batch of each candidate, infinite if out of memory; empty for one candidate.

    Args:
        candidates: candidates, which are timed in turns.
        take: measures the seconds of the batch with a number of inner steps; None for all steps.
        steps: number of inner steps to extrapolate to, as time is affine in it; 0 to time all
            steps.
    """
    if len(candidates) == 1:
        return {}
    lengths: tuple[int | None, ...] = TIMED if steps else (None,)
    best = {(candidate, length): math.inf for candidate in candidates for length in lengths}

    def attempt(candidate: Candidate, length: int | None) -> bool:
        try:
            found = take(candidate, length)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        best[candidate, length] = min(best[candidate, length], found)
        return True

    def whole(candidate: Candidate) -> float:
        times = [best[candidate, length] for length in lengths]
        if not steps or math.inf in times:
            return max(times)
        few, more = TIMED
        # The minimum of each length, not of the result: a slow short run would make that small.
        return times[1] + (steps - more) * max(0.0, times[1] - times[0]) / (more - few)

    start = time.perf_counter()
    order = [candidate for candidate in candidates if attempt(candidate, lengths[0])]  # A warm-up.
    for number in range(_ROUNDS):
        timed = number > 0 or not steps
        if timed and time.perf_counter() - start > _SECONDS:
            break
        for candidate in order:
            for length in lengths:
                attempt(candidate, length)
        order.reverse()
    return {candidate: whole(candidate) for candidate in candidates}


def pick(candidates: Sequence[Candidate], times: Mapping[Candidate, float]) -> Candidate:
    """The fastest candidate; of those about as fast, the one with the smallest peak memory."""
    least = min(times.values(), default=math.inf)
    alike = [c for c in candidates if times.get(c, math.inf) <= _ALIKE * least]
    return min(alike, key=lambda candidate: candidate.peak)


def reason(best: Candidate, times: Mapping[Candidate, float], budget: int) -> str:
    """One line on the choice: the chosen candidate, its time, the others and the budget."""
    others = [f"{_words(c)}, {_duration(seconds)}" for c, seconds in times.items() if c != best]
    beside = f" ({'; '.join(others)})" if others else ""
    took = f", {_duration(times[best])} a step" if times else ""
    return f"{_words(best)}{took}{beside}; memory budget {_gibibytes(budget)}"


def _words(candidate: Candidate) -> str:
    graphs = {None: "", False: "graphs kept, ", True: "graphs recomputed, "}[candidate.recompute]
    return f"{graphs}{tasks_in_words(candidate.size)} at a time, {_gibibytes(candidate.peak)}"


def tasks_in_words(number: int) -> str:
    return "1 task" if number == 1 else f"{number} tasks"


def _gibibytes(number: int) -> str:
    return f"{number / 2**30:.3g} GiB"


def _duration(value: float) -> str:
    return f"{value:.3g} s" if math.isfinite(value) else "out of memory"
