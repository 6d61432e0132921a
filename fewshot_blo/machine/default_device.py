"""``default_device``: a GPU if there is one; jobs of one machine take the GPUs by turns."""

from __future__ import annotations

import torch

_turn: int | None = None
_jobs = 1
_is_taken = False


def take_turn(turn: int, jobs: int) -> None:
    """Makes this process one of several jobs, counted from 0, that take the GPUs by turns."""
    global _turn, _jobs
    _turn, _jobs = turn, jobs


def default_device() -> torch.device:
    """The current GPU if there is one, else the CPU.

    In a process that takes turns, its GPU becomes the current one.
    """
    global _is_taken
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if _turn is not None:
        torch.cuda.set_device(_turn % torch.cuda.device_count())
        _is_taken = True
    return torch.device("cuda")


def jobs_on(gpu: int) -> int:
    """Number of jobs that use a GPU which this process uses: all where they take no turns."""
    return len(range(gpu, _jobs, torch.cuda.device_count())) if _is_taken else _jobs
