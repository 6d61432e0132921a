"""Peak tensor memory of a computation, free memory, and the number of tasks that fit."""

from __future__ import annotations

import gc
import resource
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.machine.allocator import kept_bytes
from fewshot_blo.machine.gpu_memory import free_on_gpu
from fewshot_blo.machine.processes import on_this_host
from fewshot_blo.machine.system_memory import resident_pages, system_free

# Errors without a class of their own, of the CPU allocator, the CUDA runtime and its libraries.
_OUT_OF_MEMORY_WORDS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that were created inside and are alive, and their maximum."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # An unknown storage of an argument existed before, and so did that of its views.
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

    Counts the results of every operation while they are alive, on any device, so that the figure
    does not depend on the allocator. Temporaries inside one operation are not counted.
    """
    with _LiveBytes() as counter:
        result = function()
        del result
    peak: int = counter.peak
    return peak


class SavedBytes(saved_tensors_hooks):
    """Counts the bytes that are saved for backward inside, each storage once.

    Attributes:
        total: number of bytes so far.
    """

    def __init__(self) -> None:
        super().__init__(self._count, lambda tensor: tensor)
        self.total = 0
        self._seen: set[int] = set()

    def _count(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self.total += storage.nbytes()
        return tensor.detach()  # A result itself would keep the node that saves it alive.


_limit: ContextVar[int | None] = ContextVar("_limit", default=None)
_gpu_limit: ContextVar[int | None] = ContextVar("_gpu_limit", default=None)
_mapped: ContextVar[int] = ContextVar("_mapped", default=0)
"""Resident pages of files where the limit begins, which are those of the program."""


@contextmanager
def memory_limit(gibibytes: float | None, *, on_gpu: bool = True) -> Iterator[None]:
    """Inside, chunks of tasks and images are sized to fit into this much memory.

    At least one task, or one image, is computed at a time, whatever it takes.

    Args:
        gibibytes: resident memory of the process in GiB, including the program itself (about half a
            GiB) but not files that are mapped later, whose pages the system drops where memory is
            short. None for no limit.
        on_gpu: whether the process may hold as much again on a GPU, and no more.

    Raises:
        ConfigurationError: if it is not positive.
    """
    if gibibytes is not None and not gibibytes > 0:
        raise ConfigurationError(f"the memory limit is {gibibytes} GiB: it must be positive")
    limit = None if gibibytes is None else int(gibibytes * 2**30)
    token, gpu_token = _limit.set(limit), _gpu_limit.set(limit if on_gpu else None)
    mapped = _mapped.set(resident_pages(Path("/"))[1])
    try:
        yield
    finally:
        _limit.reset(token)
        _gpu_limit.reset(gpu_token)
        _mapped.reset(mapped)


def is_limited() -> bool:
    """Whether there is a ``memory_limit``."""
    return _limit.get() is not None


def share_of_memory(processes: int, root: Path = Path("/")) -> float | None:
    """GiB for ``memory_limit`` in each of several processes that are to run beside each other.

    Their sum is the limit of this process, and at most what the system, whose files are at
    ``root``, has free; None if neither is known.
    """
    whole = min(_limit.get() or sys.maxsize, system_free(root))
    return None if whole == sys.maxsize else max(whole, 1) / processes / 2**30


def free_bytes(device: torch.device, root: Path = Path("/")) -> int:
    """Bytes that can still be allocated on ``device``.

    On the CPU this is the minimum of the system's available memory, of what the process's control
    groups leave (containers, batch systems), and of what its own limits of address space and data
    leave; unbounded if the system reports none of them. On a GPU that several jobs use it is at
    most this job's share (``free_on_gpu``). A ``memory_limit`` applies as well.

    Args:
        device: a GPU or the CPU.
        root: root of the file system.
    """
    if device.type == "cuda":
        return free_on_gpu(device, _gpu_limit.get() or sys.maxsize)
    return max(0, min(system_free(root), _limit_free(root)))


def budget_bytes(device: torch.device, root: Path = Path("/"), *, recorded: bool = False) -> int:
    """Bytes of the free memory that one computation may take.

    On the CPU half of the system's free memory, since other programs need memory as well, divided
    among the processes of the run on this host; on a GPU, and of a ``memory_limit``, four fifths,
    since operations have temporaries that ``peak_bytes`` does not count.

    Args:
        device: a GPU or the CPU.
        root: root of the file system.
        recorded: whether its kernels will be recorded on the GPU and replayed, which takes memory
            in addition to an eager run's.
    """
    if device.type == "cuda":
        return int(0.8 * free_bytes(device)) // (2 if recorded else 1)
    half = system_free(root) // (2 * on_this_host())
    return max(0, min(half, int(0.8 * _limit_free(root))))


def _limit_free(root: Path) -> int:
    """Bytes that ``memory_limit`` leaves."""
    limit = _limit.get()
    return sys.maxsize if limit is None else limit - _held(root)


def _held(root: Path) -> int:
    """Resident bytes, without freed ones that the C library holds and files mapped since."""
    resident, mapped = resident_pages(root)
    own = resident - max(0, mapped - _mapped.get())
    # Freed bytes may have gone back to the system already: what is held is never negative.
    return max(0, own * resource.getpagesize() - kept_bytes())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in _OUT_OF_MEMORY_WORDS
    )


def release_memory(device: torch.device) -> None:
    """Frees what a failed computation left behind and what the device's allocator caches."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_resident_bytes(device: torch.device) -> int:
    """Peak memory of this process so far in bytes: allocated on the GPU, or resident."""
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
