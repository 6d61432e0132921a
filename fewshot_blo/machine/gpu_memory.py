"""Free memory of a GPU, which the jobs that use it divide among themselves."""

from __future__ import annotations

import fcntl
import os

import torch

from fewshot_blo.machine.default_device import jobs_on

_SIZE = 8
"""Bytes of a number in the file of jobs."""

_notes: int | None = None


def share_gpus(notes: int) -> None:
    """Makes this job hold its share at most of the GPUs that it uses with others.

    Args:
        notes: descriptor of a file, empty at first, that all jobs share. The first one that looks
            at a GPU notes there what is free.
    """
    global _notes
    _notes = notes


def free_on_gpu(device: torch.device, limit: int) -> int:
    """Bytes that can still be allocated on a GPU.

    At most what the GPU has free. Where N jobs use it, each may hold one N-th of what was free when
    the first of them looked, however much of it the others have taken by now.

    Args:
        device: a GPU.
        limit: bytes that the process may hold.
    """
    free, _ = torch.cuda.mem_get_info(device)
    whole = int(free) + int(torch.cuda.memory_reserved(device))
    gpu = torch.cuda.current_device() if device.index is None else device.index
    jobs = jobs_on(gpu)
    share = whole if jobs == 1 or _notes is None else _first_look(_notes, gpu, whole) // jobs
    return max(0, min(whole, share, limit) - int(torch.cuda.memory_allocated(device)))


def _first_look(notes: int, gpu: int, whole: int) -> int:
    """The number that the first job noted for a GPU, which is this one's if it is the first."""
    place = gpu * _SIZE
    # The file is inherited, so that a lock by flock would be that of all jobs.
    fcntl.lockf(notes, fcntl.LOCK_EX, _SIZE, place)
    try:
        noted = int.from_bytes(os.pread(notes, _SIZE, place), "little")
        if not noted:
            os.pwrite(notes, whole.to_bytes(_SIZE, "little"), place)
        return noted or whole
    finally:
        fcntl.lockf(notes, fcntl.LOCK_UN, _SIZE, place)
