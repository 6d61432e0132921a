"""The process group of a command that ``torchrun`` started in several processes."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Literal

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from fewshot_blo.commands.launched import started
from fewshot_blo.errors import ConfigurationError

_SECONDS = 0.02
"""Between looks at the store."""

_PATIENCE = 2.0
"""Seconds between looks at the parent."""

_LONG = timedelta(days=365)

How = Literal["one", "together", "shards"]
"""How a command runs in several processes (its ``PROCESSES``): not at all, each step in all of
them, or a part of the work in each."""


@dataclass(frozen=True)
class Meeting:
    """The processes that ``torchrun`` started for one attempt.

    Attributes:
        store: what they tell each other.
        rank: number of this one.
        count: their number.
    """

    store: Store
    rank: int
    count: int

    def speaks(self) -> bool:
        """Whether this process is the one that reports an error: the first one that asks."""
        try:
            first: bytes = self.store.compare_set("reported by", "", str(self.rank))
        except RuntimeError:  # The host of the store has ended.
            return True
        return bool(int(first) == self.rank)

    def wait_for_all(self) -> None:
        """Waits until all processes have come to this point."""
        self.store.set(f"done {self.rank}", "")
        self.store.wait([f"done {rank}" for rank in range(self.count)], _LONG)


def meeting() -> Meeting:
    """Waits for the other processes; from then on this one ends with ``torchrun``.

    Raises:
        ConfigurationError: if a variable that ``torchrun`` sets is missing.
    """
    parent = os.getppid()
    try:
        store, rank, count = next(rendezvous("env://"))
    except ValueError as error:
        raise ConfigurationError(
            f"WORLD_SIZE is {started()}, but {error}: start several processes by torchrun"
        ) from error
    Thread(target=_stop_with_parent, args=(parent,), daemon=True).start()
    return Meeting(of_this_attempt(store, rank, count), rank, count)


@contextmanager
def group(met: Meeting) -> Iterator[None]:
    """Inside, the processes are PyTorch's process group, and the first one alone prints.

    Tensors of the CPU go by gloo and those of a GPU by NCCL. Each process uses the GPU of its
    number on its host.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK") or 0) % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=met.store, rank=met.rank, world_size=met.count)
    with quiet(met.rank > 0):
        yield
    # Not after an error, when others may never come to this point.
    dist.destroy_process_group()


def of_this_attempt(store: Store, rank: int, count: int) -> Store:
    """The store without what earlier attempts left there: addresses of processes that have ended.

    ``torchrun`` keeps the store when it restarts processes, and their hosts may count restarts
    differently. So each process announces a name of its own, and the first one publishes a list of
    names until all have found theirs on the same list.
    """
    own, listed = uuid.uuid4().hex, ""
    store.set(f"name {rank}", own)
    while True:
        if rank == 0:
            names = [store.get(f"name {other}").decode() for other in range(count)]
            if listed != "-".join(names):
                listed = "-".join(names)
                store.set("names", listed)
        listed = store.get("names").decode()
        if own in listed:
            store.set(f"{listed} {rank}", "")
            if store.check([f"{listed} {other}" for other in range(count)]):
                return PrefixStore(listed, store)
        time.sleep(_SECONDS)


def _stop_with_parent(parent: int) -> None:
    """Stops the run as by a signal when ``torchrun`` has ended without a word."""
    while os.getppid() == parent:
        time.sleep(_PATIENCE)
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def quiet(is_quiet: bool) -> Iterator[None]:
    """Inside, nothing is printed on the standard output if that is asked for."""
    if not is_quiet:
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        yield
