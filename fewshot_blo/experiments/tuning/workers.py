"""Worker processes of a search on one machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from fewshot_blo.errors import CheckpointError, ConfigurationError
from fewshot_blo.experiments.settings import Config
from fewshot_blo.machine.allocator import keep_freed_memory, return_freed_memory
from fewshot_blo.machine.memory import free_bytes, limit_in_gibibytes, memory_limit
from fewshot_blo.records.interrupts import interrupts
from fewshot_blo.tasks import DataError

_USER_ERRORS = (CheckpointError, ConfigurationError, DataError, OSError)
_POLL = 0.2
"""Seconds between looks at the workers."""


@dataclass(frozen=True)
class Share:
    """What one of several workers takes of the machine.

    Attributes:
        threads: of PyTorch.
        memory: GiB that the process may hold; None for no limit.
        returned: whether freed memory is returned to the system, as under ``--memory_limit``.
        device: its GPU; empty for the device of the recipe.
    """

    threads: int
    memory: float | None
    returned: bool
    device: str


def shares(config: Config, jobs: int) -> list[Share]:
    """Divides threads and memory among workers, and GPUs where the device is auto.

    Memory on the CPU is divided; workers that share a GPU need ``--memory_limit`` if their chunks
    do not fit side by side.
    """
    gpus = torch.cuda.device_count() if config.device == "auto" else 0
    given = limit = limit_in_gibibytes()
    if limit is None and not gpus and not config.device.startswith("cuda"):
        limit = free_bytes(torch.device("cpu")) / 2**30
    threads = max(1, torch.get_num_threads() // jobs)
    memory = None if limit is None else limit / jobs
    devices = [f"cuda:{index % gpus}" if gpus > 1 else "" for index in range(jobs)]
    return [Share(threads, memory, given is not None, device) for device in devices]


def run_workers(
    work: Callable[[Any, str, Callable[[], bool]], None],
    request: Any,
    parts: list[Share],
    say: Callable[[str], None],
) -> bool:
    """Runs ``work(request, device, stopped)`` in processes, until all have ended.

    An interrupt of this process (Ctrl-C, SIGTERM, SIGHUP) stops them after their step, and so does
    its death. A worker that dies leaves its trial to the others.

    Args:
        work: function of a module, to run in each process.
        request: its first argument.
        parts: share of the machine of each process.
        say: called with a line when it is interrupted, and for a worker that dies.

    Returns:
        Whether it was interrupted.

    Raises:
        CheckpointError: the first error that ended a worker.
    """
    context = multiprocessing.get_context("spawn")
    asked = context.RawValue("b", 0)  # Without a lock, which a killed process would keep.
    running = []
    with interrupts(say, saves=True) as stop:
        try:
            for part in parts:
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(
                    target=_child, args=(work, request, part, asked, sender), daemon=True
                )
                process.start()
                sender.close()
                running.append((process, receiver))
            while any(process.is_alive() for process, _ in running):
                for process, _ in running:
                    process.join(_POLL / len(running))
                if stop.is_set() and not asked.value:
                    asked.value = 1
                    for process, _ in running:
                        process.terminate()
        finally:  # After a second Ctrl-C; else they have ended.
            for process, _ in running:
                process.kill()
                process.join()
    _report([receiver for _, receiver in running], say)
    for process, _ in running:
        code = process.exitcode or 0
        if code < 0 and not stop.is_set():
            say(f"a worker was killed ({signal.Signals(-code).name})")
    return stop.is_set()


def _report(receivers: list[Connection], say: Callable[[str], None]) -> None:
    """Raises the first error of the workers, and says the others."""
    errors = []
    for receiver in receivers:
        with contextlib.suppress(EOFError, OSError):
            if receiver.poll():
                errors.append(receiver.recv())
    for error in errors[1:]:
        say(f"a worker ended: {error}")
    if errors:
        raise CheckpointError(f"a worker ended: {errors[0]}")


def _child(
    work: Callable[[Any, str, Callable[[], bool]], None],
    request: Any,
    part: Share,
    asked: Any,
    sender: Connection,
) -> None:
    os.setsid()  # Ctrl-C in a terminal reaches the parent alone, which passes it on once.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(part.threads)
    if part.returned:
        return_freed_memory()
    else:
        keep_freed_memory()
    try:
        with memory_limit(part.memory), interrupts(lambda line: None, saves=True) as stop:
            work(request, part.device, lambda: stop.is_set() or bool(asked.value))
    except _USER_ERRORS as error:
        sender.send(str(error))
    except KeyboardInterrupt:
        pass
    except Exception as error:
        trace = traceback.extract_tb(error.__traceback__)[-1]
        sender.send(f"{type(error).__name__}: {error} ({trace.filename}, line {trace.lineno})")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
