"""The process group of a command that ``torchrun`` started in several processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from fewshot_blo.errors import ConfigurationError

Speaks = Callable[[], bool]
"""Whether this process is the one that reports an error: the first one that asks."""


def started() -> int:
    """Number of processes that were started together (``WORLD_SIZE``).

    Raises:
        ConfigurationError: if it is not an integer.
    """
    text = os.environ.get("WORLD_SIZE") or "1"
    if not text.isdecimal():
        raise ConfigurationError(f"WORLD_SIZE is '{text}': it must be a number of processes")
    return int(text)


@contextmanager
def group() -> Iterator[Speaks]:
    """Inside, the processes of ``torchrun`` are one group, of which the first alone prints.

    Tensors of the CPU go by gloo and those of a GPU by NCCL. Each process uses the GPU of its
    number on its host.

    Raises:
        ConfigurationError: if a variable that ``torchrun`` sets is missing.
    """
    if started() == 1:
        yield lambda: True
        return
    try:
        store, rank, count = next(rendezvous("env://"))
    except ValueError as error:
        raise ConfigurationError(
            f"WORLD_SIZE is {started()}, but {error}: start several processes by torchrun"
        ) from error
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK") or 0) % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=count)

    def speaks() -> bool:
        try:
            first: bytes = store.compare_set("reported by", "", str(rank))
            return int(first) == rank
        except RuntimeError:  # The host of the store has ended.
            return True

    with _quiet(rank > 0):
        yield speaks
    # Not after an error, when others may never come to this point.
    dist.destroy_process_group()


@contextmanager
def _quiet(is_quiet: bool) -> Iterator[None]:
    if not is_quiet:
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        yield


def is_restarted() -> bool:
    """Whether ``torchrun`` has started these processes again after one of them failed."""
    return (os.environ.get("TORCHELASTIC_RESTART_COUNT") or "0") != "0"
