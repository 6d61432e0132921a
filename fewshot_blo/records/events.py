"""``Events``: scalars in a file that TensorBoard reads."""

from __future__ import annotations

import itertools
import os
import platform
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

# Protobuf makes these classes when it is imported, where type checkers do not see them.
Event: Any = vars(event_pb2)["Event"]
SessionLog: Any = vars(event_pb2)["SessionLog"]
Summary: Any = vars(summary_pb2)["Summary"]

_SECONDS = 120.0
"""Between two writes to the disk."""
_numbers = itertools.count()


class Events:
    """A new file of events in a folder.

    PyTorch's ``SummaryWriter`` writes in a thread, which prints a traceback when the disk is full.
    Here the error is the caller's.

    Args:
        folder: the folder, which is created if it is missing.
        purge_step: TensorBoard forgets what earlier files in the folder have from this step on.

    Raises:
        OSError: if the file cannot be written; so do the methods.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        name = f"{int(now):010d}.{platform.node()}.{os.getpid()}.{next(_numbers)}"
        self._file = (folder / f"events.out.tfevents.{name}").open("wb")
        self._records, self._flushed = RecordWriter(self._file), now
        self._write(Event(wall_time=now, file_version="brain.Event:2"))
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=now, step=purge_step, session_log=start))
        self.flush()

    def add(self, name: str, value: float, step: int) -> None:
        """Writes a scalar."""
        now = time.time()
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
        self._write(Event(wall_time=now, step=step, summary=summary))
        if not 0 <= now - self._flushed < _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what is held back."""
        self._file.flush()
        self._flushed = time.time()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())
