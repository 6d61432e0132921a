"""Peak tensor memory of a computation, on any device, and the chunk of tasks that fits."""

from __future__ import annotations

import resource
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages created inside and still alive, and their maximum."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # What is unknown when it goes in existed before, and so do the views of it.
        self._count((args, kwargs), inside=False)
        result = func(*args, **(kwargs or {}))
        self._count(result, inside=True)
        return result

    def _count(self, tensors: Any, *, inside: bool) -> None:
        for leaf in tree_leaves(tensors):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                self._add(storage, storage.nbytes() if inside else 0)

    def _add(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def peak_bytes(function: Callable[[], object]) -> int:
    """The largest number of bytes that tensors created by ``function()`` held at one time.

    Counts every operation's results while they are alive, on the host as well as on a device, so
    the figure does not depend on the allocator. Temporaries inside one operation do not count.
    """
    with _LiveBytes() as counter:
        result = function()
        del result
    peak: int = counter.peak
    return peak


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken on ``device``."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free) + int(cached)
    meminfo = Path("/proc/meminfo")
    for line in meminfo.read_text().splitlines() if meminfo.exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{meminfo} does not tell the free memory: set the chunk size explicitly")


def peak_resident_bytes(device: torch.device) -> int:
    """The most memory this process has held so far: of the GPU, or resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def largest_chunk(bytes_per_task: int, tasks: int, budget: int) -> int:
    """The number of tasks that fit into ``budget`` bytes: at least one, at most ``tasks``.

    Chunks are evened out: 10 tasks of which 8 fit become two chunks of 5.
    """
    fitting = max(1, min(tasks, budget // max(bytes_per_task, 1)))
    chunks = -(-tasks // fitting)
    return -(-tasks // chunks)
