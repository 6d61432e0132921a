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


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
