"""``run_jobs``: work divided among processes of this machine."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import wait
from tempfile import TemporaryFile
from typing import Any, TypeVar

import torch

from fewshot_blo.machine.memory import is_limited, share_of_memory
from fewshot_blo.records.interrupts import handled
from fewshot_blo.records.progress import Progress
from fewshot_blo.records.started_job import StartedJob

Item = TypeVar("Item")
Result = TypeVar("Result")

_PATIENCE = 600.0
"""Seconds in which jobs that are ended may finish a step and save."""
_SAID_AFTER = 2.0
"""Seconds from which on it is said that jobs are waited for."""


def run_jobs(
    make: Callable[[], Callable[[Item], Result]],
    items: Sequence[Item],
    jobs: int,
    *,
    progress: bool = True,
    goes_on: bool = False,
) -> Generator[tuple[int, Result], None, None]:
    """Computes the results of items in several processes, each of which takes the next item.

    The threads and the free memory of this process are divided among the jobs, which take GPUs by
    turns (``default_device``) and divide the memory of a GPU that several use (``free_on_gpu``).
    What a job prints appears line by line, and the counts of its progress are added to those of the
    others. Jobs end with this process, however it ends; SIGTERM
    and SIGHUP interrupt it as Ctrl-C does. Jobs get SIGTERM then, and have ten minutes in which to
    finish a step and save; at a second Ctrl-C they are killed.

    Args:
        make: called once in each process; returns the function from an item to its result. It is
            pickled, as ``functools.partial`` of a function of a module.
        items: what there is to do.
        jobs: number of processes; no more are started than there are items.
        progress: show progress and what jobs print; False is silent.
        goes_on: what happens if a job is killed. True lets the others go on, for which a line is
            printed; the item that it was at has no result, and neither have those left over if all
            jobs are killed. False ends all jobs.

    Yields:
        Place of an item, and its result, in the order in which they are finished.

    Raises:
        ChildProcessError: if a job was killed and ``goes_on`` is False.
        Exception: what was raised in a job, of which the first ends all others.
    """
    count = min(jobs, len(items))
    threads = max(1, torch.get_num_threads() // max(count, 1))
    if progress and count:
        print(_sizes(count, threads), flush=True)
    with _ended_by_signals(), ExitStack() as stack:
        shown = stack.enter_context(_Shown(progress))
        started: list[StartedJob] = []
        notes = stack.enter_context(TemporaryFile())
        stack.callback(_end, started, shown)
        for number in range(1, count + 1):
            started.append(StartedJob(number, count, threads, notes.fileno()))
            started[-1].send(is_limited())
            started[-1].send((number - 1, count, share_of_memory(count), make))
        left = list(range(len(items)))[::-1]
        by_connection = {job.inbox: job for job in started}
        while by_connection:
            for ready in wait(list(by_connection)):
                job = next(job for inbox, job in by_connection.items() if inbox is ready)
                content: Any = None
                try:
                    kind, content = job.receive()
                except ChildProcessError as end:
                    if not goes_on:
                        raise
                    shown.take("line", f"{end}; the other jobs go on")
                    kind = "killed"
                if kind == "ready" and left:
                    job.place = left.pop()
                    job.send(items[job.place])
                elif kind in ("ready", "killed"):
                    job.finish()
                    del by_connection[job.inbox]
                elif kind == "result":
                    yield job.place, content
                elif kind == "failed":
                    error, text = content
                    raise error from _InJob(f"in job {job}:\n{text}")
                else:
                    shown.take(kind, content)


class _InJob(Exception):
    """Where in a job an error was raised, for its traceback."""


def _jobs(count: int) -> str:
    return f"{count} job{'s' if count > 1 else ''}"


def _sizes(jobs: int, threads: int) -> str:
    known = torch.get_num_threads()
    said = f"{_jobs(jobs)} of {threads} thread{'s' if threads > 1 else ''}"
    said += " each" if jobs > 1 else ""
    if jobs > known:
        said += f", on {known} thread{'s' if known > 1 else ''} of this machine: fewer are as fast"
    return said


def _end(jobs: Sequence[StartedJob], shown: _Shown) -> None:
    """Ends jobs after their step; kills those that take too long, or all at a second Ctrl-C."""
    begun, said = time.monotonic(), False
    try:
        left = {job.inbox: job for job in jobs if job.ask_to_end()}
        while left and time.monotonic() < begun + _PATIENCE:
            # What they print is read on, since a full pipe would stop them.
            for ready in wait(list(left), timeout=_SAID_AFTER):
                job = next(job for inbox, job in left.items() if inbox is ready)
                content: Any = None
                try:
                    kind, content = job.receive()
                except ChildProcessError:
                    del left[job.inbox]
                    continue
                if kind == "ready":
                    job.give_nothing_more()
                with suppress(OSError):  # Of a terminal that is gone.
                    shown.take(kind, content)
            if left and not said and time.monotonic() > begun + _SAID_AFTER:
                said = True
                with suppress(OSError):
                    words = f"{_jobs(len(left))} may finish a step and save; Ctrl-C again kills"
                    shown.take("line", words)
    except KeyboardInterrupt:  # A second one.
        pass
    for job in jobs:
        job.kill()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP are as Ctrl-C."""
    begun: list[int] = []

    def handle(number: int, frame: object) -> None:
        if begun and number == signal.SIGHUP:  # Terminals and shells send it more than once.
            return
        begun.append(number)
        raise KeyboardInterrupt

    with handled(handle):
        yield


class _Shown:
    """Shows the progress of all jobs together, and what they print."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._bars: dict[str, Progress] = {}
        self._stack = ExitStack()

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def take(self, kind: str, content: Any) -> None:
        """Shows a line of a job, or units of a loop that it adds and finishes."""
        if not self._shown:
            return
        if kind == "line":
            Progress.write(content)
        elif kind == "progress":
            self._count(*content)

    def _count(self, what: str, unit: str, total: int, done: int) -> None:
        if what not in self._bars:
            bar = Progress(what, total, unit)
            self._bars[what] = self._stack.enter_context(bar)
        elif total:
            self._bars[what].extend(total)
        if done:
            self._bars[what].advance(done)
