"""``run_jobs``: work divided among processes of this machine."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

import torch

from fewshot_blo.machine.memory import is_limited, share_of_memory
from fewshot_blo.records.progress import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from fewshot_blo.records.job import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)
_PATIENCE = 60.0
"""Seconds in which a job that is ended may save what it has."""


def run_jobs(
    make: Callable[[], Callable[[Item], Result]],
    items: Sequence[Item],
    jobs: int,
    *,
    progress: bool = True,
) -> Generator[tuple[int, Result], None, None]:
    """Computes the results of items in several processes, each of which takes the next item.

    The threads and the free memory of this process are divided among the jobs. What a job prints
    appears line by line, and the counts of its progress are added to those of the others. Jobs end
    with this process, however it ends; SIGTERM and SIGHUP interrupt it as Ctrl-C does. Jobs then
    have a minute in which to save what they have.

    Args:
        make: called once in each process; returns the function from an item to its result. It is
            pickled, as ``functools.partial`` of a function of a module.
        items: what there is to do.
        jobs: number of processes; no more are started than there are items.
        progress: show progress and what jobs print; False is silent.

    Yields:
        Place of an item, and its result, in the order in which they are finished.

    Raises:
        ChildProcessError: if a job was killed.
        Exception: what was raised in a job, of which the first ends all others.
    """
    count = min(jobs, len(items))
    threads = max(1, torch.get_num_threads() // max(count, 1))
    if progress and count:
        print(_sizes(count, threads), flush=True)
    with _ended_by_signals(), ExitStack() as stack:
        shown = stack.enter_context(_Shown(progress))
        started: list[_Job] = []
        stack.callback(_end, started)
        for number in range(1, count + 1):
            started.append(_Job(number, count, threads))
            started[-1].send(is_limited())
            started[-1].send((share_of_memory(count), make))
        left = list(range(len(items)))[::-1]
        by_connection = {job.inbox: job for job in started}
        while by_connection:
            for ready in wait(list(by_connection)):
                job = next(job for inbox, job in by_connection.items() if inbox is ready)
                kind, content = job.receive()
                if kind == "ready" and left:
                    job.place = left.pop()
                    job.send(items[job.place])
                elif kind == "ready":
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


def _sizes(jobs: int, threads: int) -> str:
    known = torch.get_num_threads()
    said = f"{jobs} job{'s' if jobs > 1 else ''} of {threads} thread{'s' if threads > 1 else ''}"
    said += " each" if jobs > 1 else ""
    if jobs > known:
        said += f", on {known} thread{'s' if known > 1 else ''} of this machine: fewer are as fast"
    return said


class _Job:
    """One process, which computes one item after another."""

    def __init__(self, number: int, count: int, threads: int) -> None:
        self.number, self.count, self.place = number, count, -1
        (child_in, own_out), (own_in, child_out) = os.pipe(), os.pipe()
        self.inbox = Connection(own_in, writable=False)
        self._outbox = Connection(own_out, readable=False)
        paths = json.dumps([path or str(Path.cwd()) for path in sys.path])
        words = [sys.executable, "-I", "-c", _START, paths, str(child_in), str(child_out)]
        number_of_threads = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,  # It ends with this process, and the job with it.
                pass_fds=(child_in, child_out),
                env={**os.environ, **number_of_threads},
                start_new_session=True,  # Ctrl-C is for this process, which ends the jobs.
            )
        finally:
            os.close(child_in)
            os.close(child_out)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def send(self, content: Any) -> None:
        with suppress(BrokenPipeError):  # Its end is noticed where it would answer.
            self._outbox.send_bytes(pickle.dumps(content))

    def receive(self) -> tuple[str, Any]:
        try:
            kind, content = pickle.loads(self.inbox.recv_bytes())
        except EOFError:
            raise ChildProcessError(
                f"job {self} {_end_in_words(self._process.wait())}: its own messages, if any, are "
                "above; if memory ran out, use fewer jobs"
            ) from None
        return kind, content

    def finish(self) -> None:
        """Waits for the end of a job that has nothing left to do."""
        self._outbox.close()
        self._process.wait()
        self._close()

    def ask_to_end(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()

    def end(self, deadline: float) -> None:
        """Waits for its end, until the deadline; kills it then."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close()

    def _close(self) -> None:
        for end in (self.inbox, self._outbox):
            end.close()
        if self._process.stdin is not None:
            self._process.stdin.close()


def _end(jobs: Sequence[_Job]) -> None:
    deadline = time.monotonic() + _PATIENCE
    for job in jobs:
        job.ask_to_end()
    for job in jobs:
        try:
            job.end(deadline)
        except KeyboardInterrupt:  # A second one.
            deadline = 0.0
            job.end(deadline)


def _end_in_words(status: int) -> str:
    if status < 0:
        return f"was killed ({signal.Signals(-status).name})"
    return f"ended with status {status}"


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP are as Ctrl-C."""

    def handle(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


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
        """A message of a job: a line, or the units of a loop that are added and finished."""
        if not self._shown:
            return
        if kind == "line":
            Progress.write(content)
            return
        what, unit, total, done = content
        if what not in self._bars:
            bar = Progress(what, total, unit)
            self._bars[what] = self._stack.enter_context(bar)
        elif total:
            self._bars[what].extend(total)
        if done:
            self._bars[what].advance(done)
