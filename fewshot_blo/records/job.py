"""One of the processes of ``run_jobs``: computes items that it is sent, and reports."""

from __future__ import annotations

import io
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch

from fewshot_blo.machine.allocator import keep_freed_memory, return_freed_memory
from fewshot_blo.machine.default_device import take_turn
from fewshot_blo.machine.gpu_memory import share_gpus
from fewshot_blo.machine.memory import memory_limit
from fewshot_blo.records.progress import report_to

_EVERY = 0.2
"""Seconds between reports of progress."""
_PATIENCE = 600.0
"""Seconds in which it may finish a step and save after the end of its parent."""


def main(inbox: int, outbox: int, notes: int) -> None:
    """Runs the job; the arguments are the ends of its pipes, and a file of all jobs."""
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    orders, reports = Connection(inbox, writable=False), _Reports(outbox)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    sys.stdout = _Lines(reports)
    report_to(reports.progress)
    share_gpus(notes)
    try:
        _work(orders, reports)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        reports.send("failed", _portable(error))
        sys.exit(1)


def _work(orders: Connection, reports: _Reports) -> None:
    is_limited = pickle.loads(orders.recv_bytes())
    if is_limited:  # Before the first tensor, as in a command.
        return_freed_memory()
    else:
        keep_freed_memory()
    turn, jobs, gibibytes, make = pickle.loads(orders.recv_bytes())
    take_turn(turn, jobs)
    # A share of the host's memory is no limit of a GPU, which may be larger.
    with memory_limit(gibibytes, on_gpu=is_limited):
        compute = make()
        while True:
            reports.send("ready", None)
            try:
                item = pickle.loads(orders.recv_bytes())
            except EOFError:
                return
            result = compute(item)
            reports.flush()
            reports.send("result", result)


def _portable(error: Exception) -> tuple[Exception, str]:
    """The error and its traceback; the error as text if it cannot be sent."""
    text = traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # Whatever a constructor asks for.
        return RuntimeError(f"{type(error).__name__}: {error}"), text
    return error, text


class _Reports:
    """Messages to the process that started this one."""

    def __init__(self, outbox: int) -> None:
        self._connection = Connection(outbox, readable=False)
        self._lock = threading.Lock()
        self._pending: dict[tuple[str, str], list[int]] = {}
        self._sent_at = 0.0

    def send(self, kind: str, content: Any) -> None:
        with self._lock:
            self._connection.send_bytes(pickle.dumps((kind, content)))

    def progress(self, what: str, unit: str, total: int, done: int) -> None:
        """Units of a loop that are added and finished, sent a few times a second."""
        counts = self._pending.setdefault((what, unit), [0, 0])
        counts[0] += total
        counts[1] += done
        if time.monotonic() - self._sent_at >= _EVERY:
            self.flush()

    def flush(self) -> None:
        for (what, unit), (total, done) in self._pending.items():
            self.send("progress", (what, unit, total, done))
        self._pending.clear()
        self._sent_at = time.monotonic()


class _Lines(io.TextIOBase):
    """What is printed, sent line by line."""

    def __init__(self, reports: _Reports) -> None:
        self._reports, self._begun = reports, ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._reports.send("line", line)
        return len(text)


def _end_with_the_parent() -> None:
    """Ends this process as SIGTERM does, once the one that started it has ended."""
    with suppress(OSError):
        os.read(0, 1)  # Not by sys.stdin, whose lock this thread would hold at the end.
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_PATIENCE)
    os._exit(1)
