"""``StartedJob``: a process of ``run_jobs``, as the process that started it sees it."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from fewshot_blo.records.job import main; main(*map(int, sys.argv[2:]))"
)


class StartedJob:
    """One process, which computes one item after another.

    Args:
        number: of the job, from 1.
        count: number of jobs.
        threads: of PyTorch.
        notes: descriptor of a file that all jobs share.

    Attributes:
        number, count: as above.
        place: place of the item that it is at; -1 before the first.
        inbox: what it sends.
    """

    def __init__(self, number: int, count: int, threads: int, notes: int) -> None:
        self.number, self.count, self.place = number, count, -1
        (child_in, own_out), (own_in, child_out) = os.pipe(), os.pipe()
        self.inbox = Connection(own_in, writable=False)
        self._outbox = Connection(own_out, readable=False)
        paths = json.dumps([path or str(Path.cwd()) for path in sys.path])
        files = (child_in, child_out, notes)
        words = [sys.executable, "-I", "-c", _START, paths, *map(str, files)]
        number_of_threads = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,  # It ends with this process, and the job with it.
                pass_fds=files,
                env={**os.environ, **number_of_threads},
                start_new_session=True,  # Ctrl-C is for this process, which ends the jobs.
            )
        finally:
            os.close(child_in)
            os.close(child_out)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def send(self, content: Any) -> None:
        """Sends what is needed for the work, or an item."""
        with suppress(BrokenPipeError):  # Its end is noticed where it would answer.
            self._outbox.send_bytes(pickle.dumps(content))

    def receive(self) -> tuple[str, Any]:
        """The next message: what it is, and its content.

        Raises:
            ChildProcessError: if the job has ended.
        """
        try:
            kind, content = pickle.loads(self.inbox.recv_bytes())
        except (EOFError, OSError):  # The latter amid a message.
            raise ChildProcessError(
                f"job {self} {_end_in_words(self._process.wait())}: its own messages, if any, are "
                "above; if memory ran out, use fewer jobs"
            ) from None
        return kind, content

    def give_nothing_more(self) -> None:
        """Ends a job that asks for an item."""
        self._outbox.close()

    def finish(self) -> None:
        """Waits for the end of a job that has nothing left to do."""
        self.give_nothing_more()
        self._process.wait()
        self._close()

    def ask_to_end(self) -> bool:
        """Asks it to end by SIGTERM; False if it has ended."""
        is_running = self._process.poll() is None
        if is_running:
            self._process.terminate()
        return is_running

    def kill(self) -> None:
        """Kills it unless it has ended."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._close()

    def _close(self) -> None:
        for end in (self.inbox, self._outbox):
            end.close()
        if self._process.stdin is not None:
            self._process.stdin.close()


def _end_in_words(status: int) -> str:
    if status < 0:
        return f"was killed ({signal.Signals(-status).name})"
    return f"ended with status {status}"
