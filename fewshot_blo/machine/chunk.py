"""How many tasks are computed at a time: what fits into memory."""

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
