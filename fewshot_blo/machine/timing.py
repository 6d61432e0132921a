"""Timing of computations on their device, in seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def best_seconds(function: Callable[[], object], device: torch.device) -> float:
    """Time of the faster of two runs, after a warm-up run."""
    return min([seconds(function, device) for _ in range(3)][1:])


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Wall time of one run, including work queued on the device."""
    _synchronize(device)
    start = time.perf_counter()
    function()
    _synchronize(device)
    return time.perf_counter() - start


_SLEEP = 4_000_000
"""Cycles of a CUDA device: two or three milliseconds."""


def device_seconds(function: Callable[[], object], device: torch.device) -> float:
    """Time of a CUDA device alone: the faster of two runs, after a warm-up run.

    The device waits until Python has launched the kernels of a run, so that launch overhead is
    excluded, as in a replayed CUDA graph.
    """
    with torch.cuda.device(device):
        times: list[float] = []
        for _ in range(3):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            torch.cuda._sleep(_SLEEP)
            start.record()
            function()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        return min(times[1:])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
