"""``default_device``: a GPU if there is one; jobs of one machine take the GPUs by turns."""

from __future__ import annotations

import torch

_turn: int | None = None


def take_turn(turn: int) -> None:
    """Makes this process one of several, counted from 0, that take the GPUs by turns."""
    global _turn
    _turn = turn


def default_device() -> torch.device:
    """The current GPU if there is one, else the CPU.

    In a process that takes turns, its GPU becomes the current one.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if _turn is not None:
        torch.cuda.set_device(_turn % torch.cuda.device_count())
    return torch.device("cuda")
