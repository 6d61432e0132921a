"""Chunks of tasks: as many as fit into memory, fewer after running out of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.machine.memory import (
    free_bytes,
    is_out_of_memory,
    largest_chunk,
    peak_bytes,
    peak_resident_bytes,
    release_memory,
)

Result = TypeVar("Result")


_HOST_BYTES, _GPU_BYTES = 2**28, 2**32


@dataclass
class Chunk:
    """Number of tasks that are computed at a time, reduced whenever memory runs out.

    Attributes:
        size: number of tasks at a time.
        setting: name of the setting for the initial size, for the warning; empty for none.
        what: what a task is called in messages.
        recompute: whether a strategy without a setting of its own recomputes the graphs of its
            inner steps; None for the strategy's default.
        can_recompute: whether a strategy that stores its graphs could recompute them, which is done
            if memory runs out with a single task.
        why: reason for this choice, in one line.
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
        """Results of ``compute`` on consecutive slices of ``tasks`` tasks.

        If memory runs out, a warning says so, and that slice and all later ones, also of later
        calls, are computed with half as many tasks; a single task is computed again with recomputed
        graphs, if possible.

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
            # Only now: the exception keeps the frames, and so their tensors, alive.
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
                f"{device} ran out of memory with one {self.what} and the graphs of all its inner "
                "steps: graphs are recomputed from now on (set recompute to start that way)",
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
        advice = f" (set {self.setting} to {self.size} to start that way)" if self.setting else ""
        warnings.warn(
            f"{device} ran out of memory with {tasks} {self.what}s at a time: continuing with "
            f"{self.size}{advice}",
            stacklevel=3,
        )


def at_a_time(one: Callable[[], object], count: int, device: torch.device) -> int:
    """Number of items to compute at a time without gradients, from the measured peak of one.

    Capped where Python's overhead is small already.

    Args:
        one: computes one item.
        count: number of items.
        device: device that computes them.
    """
    most = _GPU_BYTES if device.type == "cuda" else _HOST_BYTES
    return largest_chunk(peak_bytes(one), count, min(most, free_bytes(device) // 2))
