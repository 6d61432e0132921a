"""How long a computation takes on its device."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def best_seconds(function: Callable[[], object], device: torch.device) -> float:
    """Best of two runs after a warm-up."""
    return min([seconds(function, device) for _ in range(3)][1:])


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Of one run, work queued on the device included."""
    _synchronize(device)
    start = time.perf_counter()
    function()
    _synchronize(device)
    return time.perf_counter() - start


_SLEEP = 4_000_000
"""Cycles of a CUDA device, two or three milliseconds."""


def device_seconds(function: Callable[[], object], device: torch.device) -> float:
    """Best of two runs after a warm-up, of a CUDA device alone.

    The device is kept waiting until Python has launched the kernels of a run, so that the figure is
    that of a recording that is replayed.
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
